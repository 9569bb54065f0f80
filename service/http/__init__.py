"""The application: routes, middleware, schemas, the page."""

"""HTTP routes: parse, call a use case, render a schema."""

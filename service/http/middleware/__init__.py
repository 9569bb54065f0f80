"""The layers that every request passes; `service.http.app` has their order."""

"""Stands in for the real package where a test is about the service, not about learning."""

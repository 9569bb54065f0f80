"""Durable jobs: rows in the database, a worker that leases one and runs it in a child process."""

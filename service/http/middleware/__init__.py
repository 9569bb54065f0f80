"""What every request passes on its way in: context, access, limits, idempotency."""

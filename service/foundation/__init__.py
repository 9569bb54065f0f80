"""What every room stands on: settings, errors, logs, metrics."""

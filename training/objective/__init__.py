"""What is minimised: losses, distillation terms and the teachers they ask."""

"""How a training process reports, shares the processor, stops and fails."""

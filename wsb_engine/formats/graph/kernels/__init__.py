"""Operators that several readers need, as pure torch functions that are twice differentiable under ``torch.func``."""

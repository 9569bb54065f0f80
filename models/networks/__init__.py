"""Gait networks on shared blocks; `models.registry` names them."""

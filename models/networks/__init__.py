"""Gait networks on shared blocks; `models.networks.registry` names them."""

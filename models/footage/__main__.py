"""Install the networks: `python -m models.footage`."""

from models.footage.weights import install

install()

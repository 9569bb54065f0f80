import pytest

from training.rendering.body import BodyModel


@pytest.fixture(scope="session")
def bodies() -> BodyModel:
    pytest.importorskip("anny", reason="the body model is an extra: pip install gaitid[render]")
    return BodyModel()

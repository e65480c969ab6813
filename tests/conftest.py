from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None)  # the machine may be busy
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--need-gpu", action="store_true", help="skips tests marked gpu where there is no GPU"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--need-gpu"):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="torch sees no GPU here"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a LLaVA of 0.2 M random parameters with its processor. Read only."""
    from valor_plugin.demo.model import Shape, write

    shape = Shape(
        image=32, patch=8, tower=64, tower_layers=2, language=64, language_layers=2, heads=2,
        key_value_heads=2, vocabulary=120,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny") / "model"
    write(folder, ["No pleural effusion.", "The heart is enlarged.", "Lungs are clear."], shape)
    return folder

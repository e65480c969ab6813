"""`reward-sdk calibrate`: the statistics of an expert as a file."""

from pathlib import Path

import click
from tqdm import tqdm

from reward_sdk.errors import ConfigError
from reward_sdk.jsonl import BadRow, read_rows


@click.command()
@click.option("--expert", required=True, help="A published name, or a file.")
@click.option("--data", required=True, type=click.Path(), help="JSONL: id, image.")
@click.option("--out", required=True, type=click.Path(), help="The calibration, JSON.")
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
def calibrate(expert: str, data: str, out: str, device: str) -> None:
    """Fits the statistics that `image_text` needs, over training images.

    Side views are left out. `openrlhf train` does this by itself.
    """
    from reward_sdk.models.calibration import Calibration, fit_calibration
    from reward_sdk.models.xray_expert import load_expert

    if Path(out).exists():
        try:
            Calibration.model_validate_json(Path(out).read_bytes())
        except ValueError:
            raise ConfigError(
                f"{out} is there and no calibration: name another file, or remove it"
            ) from None
    if not Path(out).absolute().parent.is_dir():
        raise ConfigError(f"{out}: there is no such folder")
    found = []
    for row in read_rows(data):
        if not isinstance(row, BadRow) and row.image:
            found.append(row.image)
        else:
            problem = row.problem if isinstance(row, BadRow) else "no 'image'"
            click.echo(f"left out: {data}, line {row.number}: {problem}", err=True)
    with tqdm(total=len(found), desc="images", disable=None) as bar:
        loaded = load_expert(expert, device)
        fit_calibration(loaded, found, lambda done: bar.update(done - bar.n)).save(out)
    click.echo(out)

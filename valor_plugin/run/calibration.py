"""The calibration of the expert that `image_text` needs, fitted once per run over its images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

from tqdm import tqdm

from reward_sdk.errors import ConfigError, ScoringError
from valor_plugin.data.studies import Study
from valor_plugin.recipe import Recipe

_IMAGES = 5000  # ours: the mean is then good to 1.4 % of the standard deviation


def named(recipe: Recipe, path: Path) -> Recipe:
    """The recipe with a file of the expert's calibration for `image_text`, which is `path` unless
    it names one."""
    rewards = recipe.rewards or {}
    if recipe.reward_servers or "image_text" not in rewards:
        return recipe
    image_text = {"calibration": str(path), **(rewards["image_text"] or {})}
    return recipe.model_copy(update={"rewards": {**rewards, "image_text": image_text}})


def fit(recipe: Recipe, studies: Sequence[Study], path: Path, keep: bool) -> None:
    """Fits the calibration over this run's images (a sample of them, if there are many), where
    `image_text` reads it from `path`.

    Args:
        recipe: the recipe of the run, whose `image_text` names the expert and reads `path`; else
            nothing is fitted.
        studies: the run's studies; of more than 5,000 as many are drawn with the recipe's seed.
        path: the JSON file of the calibration.
        keep: whether a file that is there already is left, because a run goes on with it.

    Raises:
        ConfigError: the expert cannot be loaded, an image cannot be read, or fewer than two are
            frontal.
    """
    image_text = (recipe.rewards or {}).get("image_text") or {}
    if image_text.get("calibration") != str(path) or (keep and path.exists()):
        return
    if len(studies) > _IMAGES:
        studies = Random(recipe.seed).sample(list(studies), _IMAGES)
    write(path, image_text["expert"], image_text.get("device", "cpu"), studies)


def write(path: Path, expert: str, device: str, studies: Sequence[Study]) -> None:
    """Writes the calibration of an expert over studies, of which side views are left out.

    Args:
        path: the JSON file to write.
        expert: published name or file of the expert's weights, as
            `reward_sdk.models.xray_expert.load_expert` takes them.
        device: a torch device.
        studies: studies over whose images the calibration is fitted.

    Raises:
        ConfigError: the expert cannot be loaded, an image cannot be read, or fewer than two are
            frontal.
    """
    from reward_sdk.models.calibration import fit_calibration
    from reward_sdk.models.xray_expert import load_expert

    images = [study.image_ref for study in studies]
    with tqdm(total=len(images), desc="calibrating the expert", disable=None) as bar:
        try:
            fitted = fit_calibration(
                load_expert(expert, device), images, lambda done: bar.update(done - bar.n)
            )
        except ScoringError as error:
            raise ConfigError(f"calibrating the expert: {error}") from None
    fitted.save(path)

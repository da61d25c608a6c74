"""Going on with what a folder says of itself: its overrides are composed, and nothing that they name is run unseen."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ..errors import MMSpecError
from ..settings.configuration import search_folders
from ..settings.trust import TARGET, unshipped
from .bench import prepare_run
from .bundle import Bundle

HYDRA = "hydra"


def is_hydra(override: str) -> bool:
    """Return True if an override is for hydra itself, such as `hydra/launcher=submitit_slurm`."""
    return override.lstrip("+~").startswith(HYDRA)


def overrides_of(folder: str | Path, config_dir: str | None = None) -> list[str]:
    """Return the overrides that a bundle was begun with, if they may be composed again.

    Args:
        folder: folder of the bundle, which may be somebody else's.
        config_dir: the caller's own configurations; those that the bundle names are not read.

    Raises:
        MMSpecError: if the folder holds no bundle, or what `check` refuses.
    """
    manifest = Bundle.open(folder).manifest
    overrides = manifest.get("overrides")
    if overrides is None:
        raise MMSpecError(
            f"the bundle {folder} does not say how it was begun: give its settings with --output {folder}"
        )
    check(overrides, manifest.get("config_dir"), config_dir, folder)
    return overrides


def check(overrides: Sequence[str], named_dir: str | None, config_dir: str | None, folder: str | Path) -> None:
    """Refuse to go on by overrides from a file that name code or folders beyond mmspec's own and the caller's.

    Args:
        overrides: that the file has.
        named_dir: the folder of configurations that the file has.
        config_dir: the one that the caller gives.
        folder: that holds the file.

    Raises:
        MMSpecError: for another folder of configurations, settings of hydra, interpolations, and whatever would import
            or run what is neither in a configuration of mmspec nor in one of the caller's.
    """
    anew = f"if you trust it, give its settings yourself: mmspec bench {shlex.join(overrides)} --output {folder}"
    if named_dir is not None and (config_dir is None or Path(config_dir).resolve() != Path(named_dir).resolve()):
        raise MMSpecError(
            f"{folder} was begun with the configurations in {named_dir}: if you trust them, go on with --config-dir "
            f"{named_dir}"
        )
    for override in overrides:
        if is_hydra(override) or "${" in override:
            raise MMSpecError(f"{folder} sets {override!r}, which is not taken from a file: {anew}")
    own = set()
    for path in search_folders(config_dir)[1:]:
        own |= {name for file in path.rglob("*.yaml") for name in TARGET.findall(file.read_text(encoding="utf-8"))}
    config, _, methods = prepare_run(overrides, config_dir)
    for one in [config, *(method.config for method in methods)]:
        if strange := [name for name in unshipped(one) if name not in own]:
            raise MMSpecError(f"{folder} asks for {strange[0]}, which is not run because a file says so: {anew}")

"""Weights & Biases: for each run of cnnjob, a W&B run with its metrics, settings, result and figures."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cnnjob.errors import CnnjobError
from cnnjob.reporting.sync.sync import Update, figures_of, require_package

PROJECT = "cnnjob"
ID_DIGITS = 16
"""Number of digits of the run's digest in the id of the W&B run."""


class WeightsAndBiases:
    """Sends runs with W&B's own library, which reads the environment variables ``WANDB_…`` and the user's login."""

    name = "wandb"

    def __init__(self, project: str | None = None) -> None:
        """Check that the wandb package is installed.

        Args:
            project: the project; by default, ``WANDB_PROJECT`` or ``cnnjob``.

        Raises:
            CnnjobError: the package is not installed.
        """
        self.project = project or os.environ.get("WANDB_PROJECT") or PROJECT
        require_package(self.name)

    def send(self, folder: Path, update: Update, entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Send an update; the arguments are those of :meth:`cnnjob.reporting.sync.sync.Tool.send`.

        Raises:
            CnnjobError: W&B refuses the run or cannot be reached.
        """
        import wandb

        # If this process is killed before the second entry, the update is sent again: W&B ignores steps that it has.
        yield entry
        try:
            url = _send_session(folder, update, self.project)
        except (wandb.errors.Error, OSError) as error:
            raise CnnjobError(
                f"{update.run.path}: W&B does not accept the run ({error}). Log in with wandb login, or set "
                "WANDB_MODE=offline; then run the same command again"
            ) from error
        yield entry | {"received": True, "url": url}


def _send_session(folder: Path, update: Update, project: str) -> str:
    """Send an update as one session of a W&B run; return the run's address, which is empty in offline mode.

    Raises:
        wandb.errors.Error: W&B refuses the run or cannot be reached.
    """
    import wandb

    manifest, record = update.run.manifest(), update.record
    restarted = f"-{update.generation + 1}" if update.generation else ""
    # Nothing about this process or machine is recorded: the run was trained elsewhere.
    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        # W&B shows an unfinished run as running, and as crashed when nothing has been sent for some minutes.
        x_update_finish_state=update.has_result or record.row["state"] == "failed",
    )
    session = wandb.init(
        project=project,
        id=f"{manifest['digest'][:ID_DIGITS]}{restarted}",
        name=f"{record.name}{restarted}",
        resume="allow",
        reinit="create_new",
        dir=folder,
        config={**manifest["job"], "dataset": record.settings["dataset"]},
        group=update.group,
        job_type=str(record.row["job"]),
        tags=[manifest["data"]["name"], "cnnjob"],
        notes="\n".join(record.remarks) or None,
        settings=settings,
    )
    try:
        for epoch, metrics in enumerate(update.epochs, start=update.first_epoch):
            times = {"_timestamp": metrics["ended"]} if "ended" in metrics else {}
            values = {tag: value for tag, value in metrics.items() if tag != "ended"}
            session.log({"epoch": epoch, **values, **times}, step=epoch)
        session.summary.update({"state": record.row["state"], "reason": record.row["reason"]})
        if update.has_result:
            _send_result(session, update)
    finally:
        session.finish(exit_code=int(record.row["state"] == "failed"))
    return "" if session.offline else str(session.url)


def _send_result(session: Any, update: Update) -> None:
    """Send the result of a finished run: its summary and its figures."""
    import wandb
    from PIL import Image  # noqa: PLC0415 - only if there are figures

    result = {key: value for key, value in update.record.result.items() if value is not None}
    figures = {title: wandb.Image(Image.open(io.BytesIO(png))) for title, png in figures_of(update.record).items()}
    # A step of its own, since the last epoch may have been sent before.
    session.log(figures, step=update.last_epoch + 1)
    session.summary.update(result | update.results)

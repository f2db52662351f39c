"""The worker process of audits: inoculation.worker's stages on an audit's specs, and a judge where a rubric is measured."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from inoculation import model, store, worker
from inoculation.evaluate import MINIMUM_MASS
from inoculation.render import CONTROL, price

from audit.specs import Spec


def _judge(spec: Spec, run: store.Run, evaluated: list[Any], facts: dict, tell: worker.Emit, folder: Path) -> None:
    """Let each measure's judge read the run's responses; whatever has no verdict says why and is unscored."""
    from inoculation import judge, score

    rows = []
    for measure in spec.judged:
        asked = judge.Judge(measure.judge)
        # In a folder of its own: the run's is locked while its stages are done.
        batches = [batch for batch in judge.batches([spec], ["trait"]) if batch.facts["trait"] == measure.name]
        own = [replace(batch, folder=spec.folder / "judged") for batch in batches]
        reasons = judge.run(own, asked, store.Purse(price(measure.judge)), run.say)
        rows.append(score.verdicts(own, asked, reasons, MINIMUM_MASS))
    told = pd.concat(rows)
    answered = told[told.context != CONTROL]
    if answered.value.isna().all():
        raise RuntimeError(f"no response has a verdict: {answered.reason.iloc[0]}")
    facts["controls"] = {f"{row.trait}/{row.question_id}": row.value for row in told[told.context == CONTROL].itertuples()}
    path = folder / spec.file("judge").relative_to(spec.folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    answered[["context", "question_id", "trait", "value", "reason"]].to_parquet(path, index=False)


STAGES = {**worker.STAGES, "judge": _judge}

if __name__ == "__main__":
    model.prepare_environment()
    worker.serve(Spec, STAGES)

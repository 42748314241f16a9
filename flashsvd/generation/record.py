"""`python -m flashsvd.generation.record`: makes the texts that ship with the bundled models again."""

from __future__ import annotations

from flashsvd.classification.classify import classify_pair
from flashsvd.classification.pair import ClassifyRequest
from flashsvd.generation.ability import ability_of
from flashsvd.generation.examples import PROMPTS, SNIPPETS
from flashsvd.generation.pair import PairRequest
from flashsvd.generation.recorded import Recorded, path_of, write
from flashsvd.generation.write_pair import write_pair
from flashsvd.models.sources import resolve
from flashsvd.paths import bundled_models
from flashsvd.recording import find, read
from flashsvd.results import PlanChoice
from flashsvd.session import Session


def record(model: str, session: Session | None = None) -> Recorded:
    """The first example with the plan and method of the model's own recording, or half of the parameters without one.

    Written twice, and the second time is kept: the first also fills the process's caches.
    """
    session = session or Session()
    path = find(model)
    run = None if path is None else read(path).comparison
    choice = PlanChoice(keep=0.5) if run is None else PlanChoice(plan=run.plan)
    method = "svd" if run is None else run.method
    if ability_of(resolve(model)) == "writes":
        asked = PairRequest(model, choice, next(iter(PROMPTS.values())), method=method)
        write_pair(asked, session)
        return asked, write_pair(asked, session)
    text = ClassifyRequest(model, next(iter(SNIPPETS.values())), choice, method)
    return text, classify_pair(text, session)


if __name__ == "__main__":
    for name in bundled_models():
        write(record(name), path_of(name))
        print(path_of(name))

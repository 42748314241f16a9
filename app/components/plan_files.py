"""A plan as a file: taken away, and brought."""

from __future__ import annotations

import json

import pandas as pd
import streamlit as st

from app import session
from flashsvd.errors import PlanError
from flashsvd.models.shape import ModelShape
from flashsvd.ranks import RankPlan

MAX_PLAN_BYTES = 2**20


def plan_file(plan: RankPlan, model: str) -> None:
    """Takes the plan away as a file, or brings one."""
    with st.popover("Plan file", width="stretch"):
        st.download_button(
            "Download plan (JSON)",
            data=json.dumps(plan.to_json(), indent=1),
            file_name=f"{model.replace('/', '-')}-plan.json",
            mime="application/json",
            on_click="ignore",
            width="stretch",
        )
        st.download_button(
            "Download ranks (CSV)",
            data=lambda: rank_table(plan).to_csv(index=False),
            file_name=f"{model.replace('/', '-')}-ranks.csv",
            mime="text/csv",
            on_click="ignore",
            width="stretch",
        )
        st.file_uploader(
            "Open a plan",
            type="json",
            key="w_upload",
            max_upload_size=1,
            on_change=_upload,
            args=(plan.shape,),
        )


def rank_table(plan: RankPlan) -> pd.DataFrame:
    """A row for every unit: layer and head from 1, rank (none where dense), break-even, parameters kept."""
    return pd.DataFrame(
        [
            (
                layer + 1,
                slot.name,
                unit + 1,
                rank,
                slot.break_even,
                slot.unit_parameters if rank is None else slot.factor_parameters(rank),
            )
            for layer, slot in plan.shape
            for unit, rank in enumerate(plan.get(layer, slot.name))
        ],
        columns=["layer", "projection", "head", "rank", "break_even", "parameters"],
    ).astype({"rank": "Int64"})


def _upload(shape: ModelShape) -> None:
    file = st.session_state.get("w_upload")
    if file is None:
        return
    try:
        session.set_plan(read_plan_file(file.getvalue(), shape))
    except PlanError as error:
        session.notify(f"The plan file was not used: {error}")


def read_plan_file(data: bytes, shape: ModelShape) -> RankPlan:
    """A plan for this model from the bytes of a file. Raises PlanError for anything else."""
    if len(data) > MAX_PLAN_BYTES:
        raise PlanError(f"the file has {len(data)} bytes; a plan has at most {MAX_PLAN_BYTES}")
    try:
        plan = RankPlan.from_json(data.decode("utf-8"))
        plan.check_fits(shape)
    except PlanError:
        raise
    except (UnicodeDecodeError, RecursionError, TypeError, AttributeError, ValueError) as error:
        raise PlanError(
            f"this is not a rank plan ({type(error).__name__}); download one to see the form"
        ) from None
    return plan

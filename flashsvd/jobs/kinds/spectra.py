"""Singular values of a model, without a forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashsvd.jobs.kind import Emit, Kind
from flashsvd.progress import Progress
from flashsvd.results import SpectraRequest, SpectraSummary

if TYPE_CHECKING:
    from flashsvd.session import Session


def _run(request: SpectraRequest, session: Session, progress: Progress, _: Emit) -> SpectraSummary:
    from flashsvd.compare import model_info

    loaded = session.model(request.model, "fp32", request.device, request.per_head)
    spectra, _sources = session.spectra(loaded, request.method, progress, request.calibration)
    return SpectraSummary(model_info(loaded), request.method, spectra.sigmas())


KIND = Kind("spectra", "Spectra", SpectraRequest, _run)

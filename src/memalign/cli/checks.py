"""What ``memalign doctor`` looks at without asking a model."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from memalign.errors import ConfigurationError, MemalignError

DEFAULT_WEIGHTS = "qwen2.5-coder-1.5b"
_OLDEST_SQLITE = (3, 35)
_REQUIREMENT = re.compile(r"""^([A-Za-z0-9._-]+)\s*([^;\[]*).*extra\s*==\s*['"]([^'"]+)['"]""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the account."""

    name: str
    status: Literal["ok", "missing", "failed"]
    detail: str
    advice: str = ""
    needed: bool = False
    """Whether the exit code depends on it."""


def python() -> Check:
    """The interpreter."""
    return Check(name="python", status="ok", detail=f"{platform.python_version()} ({sys.executable})", needed=True)


def package() -> Check:
    """This package."""
    from memalign import __version__

    return Check(name="memalign", status="ok", detail=f"{__version__} ({Path(__file__).parents[1]})", needed=True)


def sqlite() -> Check:
    """The library in the interpreter."""
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        return Check(name="sqlite", status="failed", detail=sqlite3.sqlite_version, advice="3.35 or newer is needed: use a newer Python", needed=True)
    return Check(name="sqlite", status="ok", detail=sqlite3.sqlite_version, needed=True)


def machine() -> Check:
    """Cores and memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    detail = f"{cores} core(s), {platform.machine()}"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        detail += f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB RAM"
    return Check(name="machine", status="ok", detail=detail)


def settings() -> Check:
    """The environment's settings."""
    from memalign.settings import read_settings

    try:
        found = read_settings()
    except ConfigurationError as error:
        return Check(name="settings", status="failed", detail=str(error), needed=True)
    detail = f"{found.threads} thread(s), {found.concurrency} calls in flight, {found.timeout_seconds:g} s and {found.retries} attempts a call"
    return Check(name="settings", status="ok", detail=detail, needed=True)


def optional_parts() -> list[str]:
    """The optional parts that the package declares."""
    try:
        return metadata.metadata("memalign").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return []


def packages(name: str, *, needed: bool = False) -> Check:
    """Whether all packages of an optional part are installed."""
    wanted = [found[1] for line in metadata.requires("memalign") or [] if (found := _REQUIREMENT.match(line)) and found[3] == name]
    missing = [package for package in wanted if not _installed(package)]
    if not missing:
        return Check(name=f"extra {name}", status="ok", detail=f"{len(wanted)} package(s) installed", needed=needed)
    shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
    return Check(name=f"extra {name}", status="missing", detail=shown, advice=f"run: pip install 'memalign[{name}]'", needed=needed)


def weights() -> list[Check]:
    """The cache, and the in-process default weights in it."""
    from memalign.models.weights import PINNED, is_verified, locate_parts
    from memalign.settings import read_settings

    try:
        cache = read_settings().cache_dir
    except ConfigurationError:
        return []  # the settings' own line says what is wrong
    pinned = PINNED[DEFAULT_WEIGHTS]
    path = cache / "weights" / pinned.file_name
    checks = [Check(name="cache", status="ok", detail=f"{cache}{'' if cache.is_dir() else ' (made when first needed)'}")]
    size = f"{pinned.size_bytes / 1e6:,.0f} MB"
    if is_verified(path, pinned):
        return [*checks, Check(name="weights", status="ok", detail=f"{DEFAULT_WEIGHTS}: put together and verified, {size}")]
    if path.exists():
        detail = f"{DEFAULT_WEIGHTS}: {path.stat().st_size / 1e6:,.0f} MB of {size} there, not verified"
        return [*checks, Check(name="weights", status="missing", detail=detail, advice="verified, or put together anew, at the first use")]
    try:
        locate_parts(pinned)
    except ConfigurationError as error:
        return [*checks, Check(name="weights", status="missing", detail=str(error))]
    return [*checks, Check(name="weights", status="ok", detail=f"{DEFAULT_WEIGHTS}: installed, put together ({size}) at the first use")]


def key() -> Check:
    """Whether there is a key; never which."""
    if os.environ.get("OPENAI_API_KEY"):
        return Check(name="OPENAI_API_KEY", status="ok", detail="set")
    return Check(name="OPENAI_API_KEY", status="missing", detail="not set", advice="set it to use openai/... models that need a key")


def address() -> Check:
    """Where openai/... models are asked, without what may be secret in an address."""
    from yarl import URL

    from memalign.settings import OPENAI_URL

    said = os.environ.get("OPENAI_BASE_URL")
    if not said:
        return Check(name="OPENAI_BASE_URL", status="ok", detail=f"not set: {OPENAI_URL}")
    try:
        shown = str(URL(said).with_user(None).with_query(None))
    except ValueError:
        return Check(name="OPENAI_BASE_URL", status="failed", detail="not an address", advice="it must look like https://host/v1")
    return Check(name="OPENAI_BASE_URL", status="ok", detail=shown)


def database(db: str) -> list[Check]:
    """A memory's health and contents; a missing file is not made."""
    from memalign.cli.opening import existing
    from memalign.memory import judge_names
    from memalign.stores import shown

    try:
        with existing(db) as store:
            names, (_, schema), faults = judge_names(store), store.upgrade(), store.faults()
            size_bytes = store.size_bytes()
        if faults:
            advice = "restore it from a copy"
            return [Check(name="memory", status="failed", detail=f"{shown(db)} is damaged: {'; '.join(faults[:5])}", advice=advice, needed=True)]
        held = ", ".join(names) or "no judge yet"
        detail = f"{shown(db)}: intact, {size_bytes / 1e6:,.1f} MB, schema {schema}; {held}"
        return [Check(name="memory", status="ok", detail=detail, needed=True), *(_judge(db, name) for name in names)]
    except MemalignError as error:
        return [Check(name="memory", status="failed", detail=str(error), needed=True)]


def _judge(db: str, name: str) -> Check:
    from memalign.cli.opening import opened
    from memalign.cli.printing import still_to_embed
    from memalign.stores import shown

    try:
        with opened(db, name) as judge:
            memory = judge.memory
            guidelines, episodes, history = len(memory.guidelines()), len(memory.episodes()), len(memory.history())
            waiting = f", {count} record(s) not fully learned" if (count := memory.waiting()) else ""
            counts = f"{guidelines} guideline(s), {episodes} case(s), {history} revision(s){waiting}"
            settings, embedded = judge.settings, memory.embedded()
            left = f"; {still_to_embed(memory.embedder, embedded)}" if embedded.lacking else ""
            detail = f"{judge.scale.spec}, {settings['model']}; {counts}{left}"
    except MemalignError as error:
        return Check(name=f"judge {name}", status="failed", detail=str(error), needed=True)
    if lacking := _lacking(settings):
        return Check(name=f"judge {name}", status="missing", detail=detail, advice=lacking)
    advice = f"to ask its model: memalign doctor --model {settings['model']}" if settings["model"].startswith("openai/") else ""
    if embedded.lacking:
        advice = f"to embed them now: memalign memory index --db {shown(db)}"
    return Check(name=f"judge {name}", status="ok", detail=detail, advice=advice, needed=True)


def _lacking(settings: Mapping[str, Any]) -> str:
    """What to do so that a judge of these settings can work here; empty when nothing is known to be in its way."""
    from memalign.embedders.minilm import is_installed

    models = {settings["model"], settings["reflection_model"] or settings["model"]}
    if any(model.startswith("local/") for model in models) and not find_spec("xllamacpp"):
        return "for its model run: pip install 'memalign[local]'"
    if settings["embedder"] == "local/minilm" and not is_installed():
        return "for its embedder run: pip install 'memalign[minilm]', or: memalign init with --embedder openai/text-embedding-3-small"
    hosted = any(name.startswith("openai/") for name in {*models, settings["embedder"]})
    if hosted and not (os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL")):
        return "set OPENAI_API_KEY, or OPENAI_BASE_URL for an endpoint that needs no key"
    return ""


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True

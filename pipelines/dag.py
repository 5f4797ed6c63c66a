"""The DAG of dvc.yaml, read through DVC itself."""

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import InputError
from stages.tracking.machine import check_git, command_output

if TYPE_CHECKING:
    from dvc.repo import Repo

SHIPPED_REMOTE = "camp-dvc-remote"
"""The folder beside the repository that .dvc/config names for a manual `dvc push`. Flows do not use it, because no user
has chosen it, and tens of GB may not fit there."""

LOCK_TIMEOUT, POLL_SECONDS = 600.0, 5.0
"""Seconds to wait for another process that runs stages here, and between two checks."""


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml."""

    name: str
    """As an argument of `dvc repro`."""
    upstream: tuple[str, ...]
    """Stages whose outputs it reads."""
    stale: bool
    """Whether DVC would run it now; one that is not stale may become so when its upstream stages run."""
    watches: bool = False
    """Whether every `dvc repro` runs it only to check for changes; this does not count as pending work."""


@dataclass(frozen=True)
class Dag:
    """All stages, each after those it depends on."""

    stages: tuple[Stage, ...]
    remote: str | None
    """The default DVC remote, if the user has configured one."""

    @property
    def pending(self) -> list[str]:
        """Names of the stages that are out of date."""
        return [stage.name for stage in self.stages if stage.stale and not stage.watches]


@contextlib.contextmanager
def _repository() -> Iterator["Repo"]:
    """The DVC repository of the working directory.

    Raises:
        InputError: there is none, or DVC cannot read its stages.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            _remove_broken_list(repo)
            yield repo
    except DvcException as error:
        archive = "not a git repository" in str(error)
        more = "expected one; `git init` makes it of a downloaded archive" if archive else "`dvc status` says more"
        raise InputError(f"{Path.cwd()}: {error}; {more}") from None


def _remove_broken_list(repo: "Repo") -> None:
    """Remove DVC's list of the files that its processes use, if it was killed while writing the list: until then, every
    command of DVC would end with an error. The next one begins a new list."""
    from dvc.lock import make_lock
    from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK

    folder = repo.tmp_dir
    if folder is None or _is_json(listed := Path(folder, RWLOCK_FILE)):
        return
    hardlink = bool(repo.config["core"].get("hardlink_lock"))
    # Held by each DVC that changes the list, so that none is writing it now.
    with make_lock(str(Path(folder, RWLOCK_LOCK)), tmp_dir=folder, hardlink_lock=hardlink, wait=True):
        if not _is_json(listed):
            listed.unlink()
            print(f"removed {listed}, which a killed DVC has left unfinished", flush=True)


def _is_json(path: Path) -> bool:
    """Whether a file is whole JSON, or there is none."""
    try:
        json.loads(path.read_bytes())
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True


def check_experiments(jobs: int) -> None:
    """Check that DVC can run experiments here, `jobs` at a time: they start from a commit, DVC writes the path of this
    repository as ASCII into their settings and into an address, and it drops their results if the clone is shallow.

    Raises:
        InputError: `jobs` is below 1, there is no git or no commit, the clone is shallow, the path has other
            characters, or this workspace is as a killed DVC has left it.
    """
    if jobs < 1:
        raise InputError(f"jobs: {jobs} is below 1")
    check_git()
    here = Path.cwd().resolve()
    done = subprocess.run(["git", "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{here}: {done.stderr.strip()}; expected a git repository with a commit to start from")
    if command_output("git", "rev-parse", "--is-shallow-repository") == b"true\n":
        raise InputError(
            f"{here}: is a shallow clone, of which DVC keeps no experiment; expected all commits: "
            "`git fetch --unshallow` brings them"
        )
    if wrong := re.findall(r"[^ -~]|[#?]", str(here)):
        raise InputError(f"{here}: holds {wrong[0]!r}; expected ASCII without # and ?, or DVC's experiments fail")
    if _left_by_dvc():
        from dvc.repo import Repo

        with Repo(_wait_for_lock=True) as repo, repo.lock:  # held by a DVC that is alive and begins one
            branch = _left_by_dvc()
        if branch:
            raise InputError(
                f"{here}: DVC was killed while it began an experiment, whose params are in params.yaml now; expected "
                f"your own: `git checkout --force {branch}` brings them back, then `git stash pop` your changes, if "
                f"`git stash list` has some. If you have detached HEAD yourself, `git switch {branch}` keeps all files"
            )


def _left_by_dvc() -> str | None:
    """The branch that this workspace was on until DVC, to begin an experiment, detached HEAD at the same commit, which
    leaves an entry in git's log; None if nothing did since.

    Others detach HEAD so too, such as who checks out an exact commit in a clone. Without changes and without a stash,
    such a workspace has lost nothing and has the commit's params.
    """
    said = (command_output("git", "reflog", "-1", "--format=%gs %H", "HEAD") or b"").decode(errors="replace")
    moved = re.fullmatch(r"checkout: moving from (.+) to (\w{40,}) \2\n", said)
    at_branch = command_output("git", "rev-parse", "--verify", "--quiet", f"refs/heads/{moved[1]}") if moved else None
    if moved is None or at_branch is None or at_branch.decode().strip() != moved[2]:
        return None
    changed = command_output("git", "status", "--porcelain", "--untracked-files=no")
    return moved[1] if changed or command_output("git", "rev-parse", "--verify", "--quiet", "refs/stash") else None


def _wait_for_lock(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return DVC's answer once no other process, such as a user's `dvc repro`, runs a stage in this workspace.

    Raises:
        DvcException: as raised by `read`; LockError if the other process takes longer than LOCK_TIMEOUT.
    """
    from dvc.lock import LockError

    until = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            return read()
        except LockError as error:
            if time.monotonic() > until:
                raise
            print(f"waiting for another run in this workspace: {str(error).splitlines()[0]}", flush=True)
            time.sleep(POLL_SECONDS)


def read_dag(targets: tuple[str, ...] = ()) -> Dag:
    """Read the stages of the working directory and whether each is stale.

    Args:
        targets: only these stages and what they depend on; all if empty.

    Raises:
        InputError: there is no DVC repository, dvc.yaml is wrong, or a target is not a stage.
    """
    import networkx

    with _repository() as repo:
        stale = _wait_for_lock(repo.status)  # first, because the process waited for may change the graph
        graph = repo.index.graph  # an edge leads from a stage to one it depends on
        names = {stage: stage.addressing for stage in graph}
        unknown = set(targets) - set(names.values())
        if unknown:
            raise InputError(f"dvc.yaml: {sorted(unknown)[0]}: is not a stage; there are {', '.join(names.values())}")
        wanted = set(graph)
        if targets:
            chosen = [stage for stage in graph if names[stage] in targets]
            wanted = set(chosen).union(*(networkx.descendants(graph, stage) for stage in chosen))
        order = [stage for stage in networkx.dfs_postorder_nodes(graph) if stage in wanted]
        stages = tuple(
            Stage(
                names[s],
                tuple(sorted(names[up] for up in graph.successors(s))),
                names[s] in stale,
                s.always_changed and stale.get(names[s]) == ["always changed"],
            )
            for s in order
        )
        remote = repo.config["core"].get("remote")
        url = str(repo.config["remote"].get(remote, {}).get("url", ""))
        return Dag(stages, None if Path(url).name == SHIPPED_REMOTE else remote)


def shared_stages(keys: Iterable[str]) -> list[str]:
    """Stages that do not depend on these dotted params keys: experiments that vary the keys share their results.

    Raises:
        InputError: there is no DVC repository, or dvc.yaml is wrong.
    """
    import networkx
    from dvc.dependency.param import ParamsDependency

    changed = [key.split(".") for key in keys]

    def reads(param: str) -> bool:
        """Whether a changed key equals `param`, is below it, or is above it."""
        names = param.split(".")
        return any(all(a == b for a, b in zip(names, key, strict=False)) for key in changed)

    with _repository() as repo:
        graph = repo.index.graph
        params = {
            stage: [
                name
                for dep in stage.deps
                if isinstance(dep, ParamsDependency) and dep.def_path == ParamsDependency.DEFAULT_PARAMS_FILE
                for name in dep.params
            ]
            for stage in graph
        }
        touched = {stage for stage, names in params.items() if any(map(reads, names))}
        touched |= {up for stage in touched for up in networkx.ancestors(graph, stage)}  # an edge leads to a dependency
        return [stage.addressing for stage in networkx.dfs_postorder_nodes(graph) if stage not in touched]


def metrics_diff(base: str) -> list[dict[str, object]] | None:
    """The output of `dvc metrics diff BASE`, a row per number, recalls first: metric, value in `base`, now, change.

    None if DVC cannot compare, as with a revision that does not exist.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        with Repo() as repo:
            diff = repo.metrics.diff(a_rev=base)
    except (DvcException, SCMError):
        return None
    return [
        {"metric": f"{Path(path).stem}: {name}", base: change.get("old"), "now": change.get("new"),
         "change": change.get("diff")}
        for path, numbers in sorted(diff.get("diff", {}).items(), key=lambda item: "retrieval" not in item[0])
        for name, change in sorted(numbers.items())
    ]  # fmt: skip

"""The command line: `python -m scripts COMMAND`. Stages are pure; this is where they are put together."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.cards.problems import MAX_PROBLEMS, Problem
from scripts.checkpoints.options import add_commands
from scripts.files import write
from scripts.machine import cores, speak_plainly, told
from scripts.project import Project
from scripts.runs.state import example_slugs, states
from scripts.site.gather import BrokenCardsError, checked_library, gather, sound_library

if TYPE_CHECKING:
    from scripts.evidence.knowledge import Knowledge

CORES = cores()


def check(project: Project, paths: Sequence[Path], form: str = "text") -> int:
    """Print every problem (of the given cards, or of all) and a summary line; 1 if there is an error."""
    library, problems = checked_library(project, states(project), CORES)
    wanted = {path.resolve() for path in paths}
    known = {(project.root / source.path).resolve() for source in library.sources.values()}
    for path in sorted(wanted - known):
        print(f"{path}: no card of {project.cards.name}/", file=sys.stderr)
    problems = [p for p in problems if not wanted or (project.root / p.path).resolve() in wanted]
    report(problems, form)
    has_error = any(problem.severity == "error" for problem in problems) or not wanted <= known
    print(summary(len(wanted) or len(library.sources), problems), file=sys.stderr if has_error else sys.stdout)
    return 1 if has_error else 0


def report(problems: Sequence[Problem], form: str = "text") -> None:
    """Print each problem, as text or as an annotation for GitHub; of a card with very many, the first ones."""
    count = Counter(problem.path for problem in problems)
    shown: Counter[str] = Counter()
    for problem in problems:
        shown[problem.path] += 1
        if shown[problem.path] <= MAX_PROBLEMS:
            print(annotation(problem) if form == "github" else problem)
    for path, number in count.items():
        if number > MAX_PROBLEMS:
            print(Problem(path, 1, 1, f"and {number - MAX_PROBLEMS:,} more problems", "warning"))


def annotation(problem: Problem) -> str:
    """A workflow command of GitHub, which shows the problem at its line of a pull request."""
    place = {"file": problem.path, "line": problem.line, "col": problem.column}
    fields = ",".join(f"{name}={_for_github(str(value), ':,')}" for name, value in place.items())
    return f"::{problem.severity} {fields}::{_for_github(problem.told)}"


def _for_github(text: str, also: str = "") -> str:
    """Escaped as the runner reads it: `%` first, then line ends, and in a property the separators too."""
    return "".join(f"%{ord(char):02X}" if char in "%\r\n" + also else char for char in text)


def summary(cards: int, problems: Sequence[Problem]) -> str:
    """`19 cards, no problem`, or how many problems there are."""
    errors = sum(problem.severity == "error" for problem in problems)
    counted = ((errors, "error"), (len(problems) - errors, "warning"))
    counts = [f"{n} {word}{'s' * (n != 1)}" for n, word in counted if n]
    return f"{cards} card{'s' * (cards != 1)}, {' and '.join(counts) or 'no problem'}"


def run(project: Project, options: argparse.Namespace) -> int:
    """Run the examples that are out of date (or the named ones)."""
    from scripts.runs import schedule

    if _unknown(project, options.slugs):
        return 1
    slugs = options.slugs or example_slugs(project)
    targets = schedule.wanted_targets(project, slugs, options.preset, options.device)
    try:
        profile = schedule.profile_folder(options.profile) if options.profile else None
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if profile and (path := schedule.unfit_path(project)):
        print(
            f"on a cluster a path may hold letters, digits and ./_+-@ only, and this one does not: {path}",
            file=sys.stderr,
        )
        return 1
    return schedule.run_all(project, targets, options.jobs, profile)


def rehearse(project: Project, slugs: Sequence[str]) -> int:
    """Count what the preset `full` of these examples (or of all) asks of a GPU."""
    from scripts.runs import rehearsals

    return _unknown(project, slugs) or rehearsals.rehearse(project, slugs or example_slugs(project))


def _unknown(project: Project, slugs: Sequence[str]) -> int:
    """1, and a line on the error stream, if there is no example of a name."""
    known = example_slugs(project)
    unknown = [slug for slug in slugs if slug not in known]
    if unknown:
        print(f"no example {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
    return 1 if unknown else 0


def count(project: Project) -> int:
    """Count what has not been counted yet, and study what has not been studied; 1 if something could not be."""
    from scripts.architectures import counts, studies

    library = sound_library(project, {}, CORES)
    keys = counts.missing(project, library)
    if keys:
        print(f"counting {len(keys)} architectures", flush=True)
        counts.count_all(project, keys, CORES)
    _, errors = counts.read(project)
    for key, error in errors.items():
        print(f"cannot count {key}: {error}", file=sys.stderr)
    failed = studies.write_missing(project, library, CORES)
    for name, error in failed.items():
        print(f"{name}: {error}", file=sys.stderr)
    return 1 if errors or failed else 0


def render(project: Project, options: argparse.Namespace, queued: bool = False) -> Knowledge:
    """Write the pages."""
    from scripts.site import render as stage  # with its templates and libraries: `check` does without

    knowledge = gather(project, queued, options.preset, options.device, CORES)
    changed = stage.render(project, knowledge, CORES)
    print(f"{len(knowledge.cards)} cards rendered, {changed} files changed", flush=True)
    return knowledge


def _rendered(project: Project, options: argparse.Namespace) -> int:
    render(project, options)
    return 0


def build(project: Project, options: argparse.Namespace) -> int:
    """Render, judge and build the site; with `strict`, a surprise or a missing run is an error."""
    from scripts.site import build as stage

    knowledge = render(project, options)
    surprises = list(knowledge.surprises())
    for surprise in surprises:
        print(surprise, file=sys.stderr)
    lacking = [slug for slug, state in knowledge.runs.items() if state.status != "ok"]
    for slug in lacking:
        print(
            f"examples/{slug}.py: {knowledge.runs[slug].status}; run it with: python -m scripts run {slug}",
            file=sys.stderr,
        )
    if options.strict and (surprises or lacking):
        print("strict: the site was not built", file=sys.stderr)
        return 1
    try:
        built = stage.build(project, options.builder)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{project.site.name}/ {'is built' if built else 'is up to date'}; open it with: python -m scripts serve")
    return 0


def write_schema(project: Project) -> int:
    """Write model_cards/card.schema.json."""
    from scripts.cards.json_schema import card_schema
    from scripts.cards.library import load_vocabulary

    words, *_ = load_vocabulary(project.cards, project.root)
    write(project.cards / "card.schema.json", card_schema(words).encode())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and do what it says; the exit status."""
    options = _parser().parse_args(argv)
    try:
        status = told(lambda: dispatch(Project(Path.cwd()), options))
        sys.stdout.flush()
        return status
    except BrokenCardsError as error:
        report(error.problems)
        print(f"{summary(error.cards, error.problems)}; nothing was written", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def dispatch(project: Project, options: argparse.Namespace) -> int:
    """Do what the command line says; the exit status."""
    match options.command:
        case "check":
            return check(project, options.paths, options.format)
        case "run":
            return run(project, options)
        case "rehearse":
            return rehearse(project, options.slugs)
        case "count":
            return count(project)
        case "measure":
            from scripts.architectures import measure

            return measure.measure(project, sound_library(project, {}, CORES), options)
        case "try":
            from scripts.checkpoints import trying

            return trying.try_picture(sound_library(project, {}, CORES), options)
        case "photographs":
            from scripts.checkpoints import showing

            return showing.photographs(project, sound_library(project, {}, CORES), options)
        case "render" | "build":
            from scripts.site.render import writing

            with writing(project):
                return build(project, options) if options.command == "build" else _rendered(project, options)
        case "serve":
            from scripts.site import serve

            return serve.serve(project, options)
        case "new":
            from scripts import new

            return new.new(project, options.slug)
        case _:
            return write_schema(project)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts", description="Check cards, run examples, build the site.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where examples run")
    which.add_argument("--preset", choices=("smoke", "quick", "full"), help="quick on a CPU, full on a GPU")
    jobs = argparse.ArgumentParser(add_help=False)
    jobs.add_argument("--jobs", type=int, default=CORES, metavar="N", help="examples at a time")

    checking = commands.add_parser("check", help="print every problem of the cards as path:line:column: message")
    checking.add_argument("paths", nargs="*", type=Path, metavar="PATH")
    default = "github" if os.environ.get("GITHUB_ACTIONS") == "true" else "text"
    checking.add_argument(
        "--format", choices=("text", "github"), default=default, help="annotations for GitHub Actions"
    )
    running = commands.add_parser("run", help="run the examples that are out of date", parents=[which])
    running.add_argument("slugs", nargs="*", metavar="SLUG")
    running.add_argument("--jobs", type=int, metavar="N", help="examples at a time: all cores, or as the profile says")
    running.add_argument("--profile", metavar="NAME", help="of Snakemake, for a cluster: slurm, kubernetes or a folder")
    rehearsing = commands.add_parser("rehearse", help="count what the preset full asks of a GPU, and keep it")
    rehearsing.add_argument("slugs", nargs="*", metavar="SLUG")
    commands.add_parser("count", help="count parameters and MACs of the published architectures")
    _add_timing(commands.add_parser("measure", help="time the counted architectures on this machine"))
    add_commands(commands)
    commands.add_parser("render", help="write the pages into docs/", parents=[which])
    building = commands.add_parser("build", help="render and build site/", parents=[which])
    building.add_argument("--strict", action="store_true", help="an assertion that turned false is an error")
    building.add_argument("--builder", choices=("mkdocs", "zensical"), default="mkdocs", help="of the pages")
    serving = commands.add_parser("serve", help="show the site, run what is missing beside it", parents=[which, jobs])
    serving.add_argument("--port", type=int, default=8000)
    serving.add_argument("--no-run", action="store_true", help="show the site, run nothing")
    commands.add_parser("new", help="write a commented card and example to start from").add_argument("slug")
    commands.add_parser("schema", help="write model_cards/card.schema.json")
    return parser


def _add_timing(timing: argparse.ArgumentParser) -> None:
    timing.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    timing.add_argument("--models", nargs="+", default=(), metavar="NAME", help="cards, or builds that begin so")
    timing.add_argument("--input", metavar="SIZE", help="in the place of the sizes of the cards: 224x224")
    timing.add_argument("--batch", type=int, default=1, metavar="N")
    timing.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    timing.add_argument("--repeats", type=int, default=30, metavar="N", help="runs at most, after the warm-up")
    timing.add_argument("--seconds", type=float, default=6, metavar="S", help="for each architecture at most")
    timing.add_argument("--threads", type=int, metavar="N", help="of the CPU; all that there are")
    timing.add_argument("--keep", action="store_true", help="write into measurements/, which git keeps")


if __name__ == "__main__":
    speak_plainly()
    if sys.argv[1:2] in (["check"], ["render"], ["build"]):
        gc.disable()  # they end soon and leave hardly a cycle; looking for one takes a sixth of their time
        os._exit(main())  # nor is it worth a tenth to take apart what the system takes back at once
    from scripts.runs.process import end_on_signals

    end_on_signals()
    sys.exit(main())

"""All studies in the order of the pages, and what they found. For tools/report.py, which publishes it."""

from studies import batch_size, confusions, connections, corruptions, dropout, groups, learning_rate, norms
from studies.study import draw, picture_file

STUDIES = [module.STUDY for module in (
    norms, connections, dropout, groups, batch_size, learning_rate, corruptions, confusions)]


def complete():
    """(study, what it found) of each study that is complete."""
    pairs = [(study, study.found()) for study in STUDIES]
    return [(study, found) for study, found in pairs if found]


def draw_all(chosen=lambda study: True):
    """The pictures of all chosen studies that are complete."""
    for study in filter(chosen, STUDIES):
        draw(study)


def findings(studies):
    """The list in README.md, from what complete() gave: a line each."""
    return "".join(f"{' '.join(f'- {study.question} {study.finding(found)}'.split()).rstrip('.')}.\n"
                   for study, found in studies)


def sections(studies):
    """The part of results/README.md about the studies, from what complete() gave."""
    parts = []
    for study, found in studies:
        finding, setting = (text.replace("\n", " ") for text in (study.finding(found), study.setting))
        parts.append(f"## {study.question}\n\n{study.expectation}\n\n![{finding}]({picture_file(study).name})\n\n"
                     f"{finding} ({setting}; `make study-{study.name}`).\n\n{study.table(found)}")
    return parts

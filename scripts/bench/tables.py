"""`python -m scripts.bench.tables --json FILE`: the tables of a run that is on file.

As Markdown for the documents, or as the picture; so figures are never copied by hand.
"""

import json
from pathlib import Path

import click

from scripts.bench.pictures import draw
from scripts.bench.report import check_format, markdown, with_tables


@click.command()
@click.option("--json", "path", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              required=True)  # fmt: skip
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path),
              help="Also draw it, as .svg or .png.")  # fmt: skip
@click.option("--page", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Write the tables into this page, between its marks.")  # fmt: skip
def main(*, path: Path, picture: Path | None, page: Path | None) -> None:
    """Print the Markdown tables of a run."""
    report = json.loads(path.read_text(encoding="utf-8"))
    try:
        check_format(report)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if page is None:
        click.echo(markdown(report), nl=False)
    else:
        page.write_text(with_tables(page.read_text(encoding="utf-8"), report), encoding="utf-8")
    if picture is not None:
        draw(report, picture)


if __name__ == "__main__":
    main()

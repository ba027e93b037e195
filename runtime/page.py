"""HTML pages from templates."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .show import harmless


def render_page(template: Path, filters: Mapping[str, Callable[..., Any]], **fields: Any) -> str:
    """The page that a Jinja template makes of `fields`. Needs jinja2.

    Every text in it that is not the template's own is escaped, and a field that is missing is an error.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    page = environment.get_template(template.name).render(**fields)
    # The model may write control characters, and HTML has none; a dataset's lines may end as Windows' do.
    return harmless(page.replace("\r\n", "\n"))

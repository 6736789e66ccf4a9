"""Self-contained HTML pages, rendered from the templates of a package."""

from __future__ import annotations

import functools

import jinja2


def render(package: str, template: str, **values: object) -> str:
    """The text of a page; everything put into it is escaped.

    Args:
      package: its folder `templates` has the template.
      template: its file name.
      **values: its variables; a missing one is an error.
    """
    html = _environment(package).get_template(template).render(**values)
    # A path that is not UTF-8 has lone surrogates, which cannot be encoded.
    return html.encode("utf-8", "backslashreplace").decode("utf-8")


@functools.cache
def _environment(package: str) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

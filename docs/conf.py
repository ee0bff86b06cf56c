"""Sphinx configuration of the documentation site. `make docs` builds it into build/docs, without network, GPU or notebook runs.

The source folder is the project's root, so a relative link in a Markdown file means the same on the site and in the repository.
"""

import json
import sys
from pathlib import Path

from sphinx.application import Sphinx

from vmae_lab.lab.notebook_run import moved_links

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE / "extensions")]

project = "vmae_lab"
author = "the authors of vmae_lab"
copyright = "the authors of vmae_lab, MIT license"
root_doc = "README"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "plain_docstrings",
    "mathml",
    "check_site",
]

# ---------------------------------------------------------------------------------------------------------------------------
# Which files are pages


def pages(pattern: str) -> list[str]:
    """The pages of the files that match, relative to the root and without suffix, as Sphinx names them."""
    return sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.glob(pattern))


# The scales whose reports git keeps: results of `smoke` are meaningless; `own` and changed settings are private.
SCALES = ("paper", "gpu", "study20", "study", "demo")
REPORTS = {scale: pages(f"reports/{scale}/*/README.md") for scale in SCALES}
BENCHMARKS = pages("reports/benchmarks/*.md")
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/**.md",
    "notebooks/*.ipynb",
    "reports/README.md",
    "reports/LOG.md",
    *(f"{page}.md" for page in sum(REPORTS.values(), BENCHMARKS)),
]
# Large folders without pages, so that Sphinx does not walk them.
exclude_patterns = [".*", "build", "runs", "tests", "vmae_lab", "**/.ipynb_checkpoints"]


def contents(*names: str, caption: str = "") -> str:
    """A table of contents of these pages for the navigation, as Markdown."""
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["", "```{toctree}", *options, "", *(f"/{name}" for name in names), "```", ""])


# Tables of contents are added here and not in the files, which are also read outside of the site.
CONTENTS = {
    "README": contents(
        "docs/tutorials", "docs/how_to", "docs/api/index", "reports/README", "docs/glossary", "CONTRIBUTING", "CHANGELOG"
    ),
    "docs/tutorials": contents(*pages("notebooks/*.ipynb")),
    "docs/how_to": "".join(
        contents(*(f"docs/{name}" for name in names), caption=caption)
        for caption, names in (
            ("Use", ("recipes", "data", "checkpoints", "predict", "detection", "many_devices", "statistics", "faq")),
            ("Change", ("architecture", "extending")),
        )
    ),
    "docs/api/index": contents(
        *(f"docs/api/{name}" for name in ("masking", "models", "data", "training", "evaluation", "lab"))
    ),
    "reports/README": "".join(
        contents(*names, caption=caption)
        for caption, names in (
            ("Log", ["reports/LOG"]),
            *((f"Scale {scale}", REPORTS[scale]) for scale in SCALES),
            ("Benchmarks", BENCHMARKS),
        )
        if names
    ),
}


def edit_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Change the text of a page before it is read; a handler of Sphinx's event `source-read`."""
    if docname.startswith("notebooks/"):
        source[0] = tutorial(docname.removeprefix("notebooks/"), source[0])
    else:
        # Non-breaking spaces, so that narrow table columns do not break "95.0 ± 0.8".
        source[0] = source[0].replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}") + CONTENTS.get(docname, "")


def tutorial(name: str, stored: str) -> str:
    """A notebook as JSON, with the outputs of its demo run if that is in reports/, and with a link to the run's report."""
    executed = ROOT / "reports" / "demo" / name / f"{name}.ipynb"
    notebook = json.loads(executed.read_text(encoding="utf-8") if executed.is_file() else stored)
    if executed.is_file():  # its links were made for its own folder
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = moved_links("".join(cell["source"]), executed.parent, ROOT / "notebooks")
    note = "This page shows the outputs of the `demo` run." if executed.is_file() else "Most outputs are not stored here."
    if f"reports/demo/{name}/README" in REPORTS["demo"]:
        note += f" Figures and tables: [report of the demo run](../reports/demo/{name}/README.md)."
    title, _, rest = "".join(notebook["cells"][0]["source"]).partition("\n")
    notebook["cells"][0]["source"] = f"{title}\n\n```{{note}}\n{note}\n```\n{rest}"
    return json.dumps(notebook)


def skip_member(app: Sphinx, what: str, name: str, *details: object) -> bool | None:
    """Leave out the classes that pydantic adds to a module for a generic one, such as `Setting[int]`."""
    return True if "[" in name else None


def setup(app: Sphinx) -> None:
    app.connect("source-read", edit_source)
    app.connect("autodoc-skip-member", skip_member)


# ---------------------------------------------------------------------------------------------------------------------------
# Markdown and notebooks

myst_enable_extensions = ["dollarmath"]
myst_dmath_allow_space = False  # so that "$5 and $6" is text
html_math_renderer = "mathml"
myst_heading_anchors = 4
myst_heading_slug_func = "github"
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # the default loads scripts from the network

# ---------------------------------------------------------------------------------------------------------------------------
# API pages

add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "exclude-members": "model_config, model_post_init"}
autosummary_generate = False
viewcode_follow_imported_members = False  # else links from source pages to re-exported names are broken
python_maximum_signature_line_length = 100

# ---------------------------------------------------------------------------------------------------------------------------
# HTML

html_theme = "pydata_sphinx_theme"
html_title = "vmae_lab"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {
    "logo": {"text": "vmae_lab"},
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "pygments_light_style": "tango",  # in the theme's own styles, removed and added lines of a diff are blue and black
    "pygments_dark_style": "github-dark",
    "footer_start": ["copyright"],
    "footer_end": [],
}

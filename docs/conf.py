"""The site: `sphinx-build -W --keep-going -n docs build/site`, offline, from the Markdown here and the docstrings."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import scoresde  # noqa: E402 (found beside this folder, whether installed or not)

project = "scoresde"
author = "The scoresde developers"
copyright = author
version = release = scoresde.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "formulas",
    "public_names",
    "reference_pages",
    "equation_rows",
    "docstrings",
    "repository_links",
    "linked_names",
    "linked_terms",
    "readable_tables",
    "source_pages",
]
root_doc = "index"
# README.md is the same list of pages for those who browse the files.
exclude_patterns = ["README.md", "_*", "**/outputs/*.md"]
nitpicky = True
# Types of others are named and not linked; everything of ours must lead somewhere.
nitpick_ignore_regex = [("py:.*", r"(?!scoresde\b).*")]

# A chapter may have no page yet; of that warning Sphinx names no type by which it could be suppressed.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(lambda told: "toctree glob" not in str(told.msg))

# -- Markdown ------------------------------------------------------------------------------------------------------
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
myst_dmath_allow_labels = False
highlight_language = "default"  # Python where it is Python, plain text where it is a formula

# -- docstrings ----------------------------------------------------------------------------------------------------
autodoc_inherit_docstrings = False  # an override is described where it is declared
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = False
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_preprocess_types = False
add_module_names = False
maximum_signature_line_length = 150
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
viewcode_line_numbers = True

# -- pages ---------------------------------------------------------------------------------------------------------
html_theme = "furo"
html_title = "scoresde"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "katex"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_favicon = "_static/icon.svg"
FONTS = {
    # what each system has: nothing is loaded from elsewhere
    "font-stack": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', Arial, sans-serif",
    "font-stack--monospace": "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace",
}
html_theme_options = {
    "navigation_with_keys": True,
    "top_of_page_buttons": [],
    "light_logo": "icon.svg",
    "dark_logo": "icon.svg",
    "light_css_variables": {
        "color-brand-primary": "#2f5bc9",
        "color-brand-content": "#2f5bc9",
        "color-api-name": "#1d3f97",
        "color-api-pre-name": "#5d6675",
        **FONTS,
    },
    "dark_css_variables": {
        "color-brand-primary": "#8fb0ff",
        "color-brand-content": "#8fb0ff",
        "color-api-name": "#b7cbff",
        "color-api-pre-name": "#a7b0c0",
    },
}

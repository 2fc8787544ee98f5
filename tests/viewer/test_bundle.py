"""Test ``lightning_gradwatch.viewer.bundle``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_gradwatch.viewer.bundle import STATIC, bundle

GOOD = {
    "report.js": """import { App } from "./app.js";
import {
  low,
  high,
} from "./ends.js";

new App(low, high);
""",
    "app.js": """/** @param {import("./ends.js").Low} x */
import { low } from "./ends.js";
export class App {
  x = low;
}
""",
    "ends.js": """export const low = 1;
export const high = 2;
async function hidden() {}
let count = 0;
""",
    "index.js": "export async function render() {}\nimport.meta;\n",
}


def folder(path: Path, **changes: str) -> Path:
    """Write modules that fit together, some of them changed."""
    for name, source in {**GOOD, **{f"{name}.js": source for name, source in changes.items()}}.items():
        (path / name).write_text(source)
    return path


def test_modules_stand_after_those_they_need_and_only_once(tmp_path):
    """What nobody imports is left out."""
    script = bundle("report.js", folder(tmp_path))
    assert re.findall(r"^// (\w+\.js)$", script, re.MULTILINE) == ["ends.js", "app.js", "report.js"]
    assert "render" not in script


def test_imports_and_exports_are_gone_and_lines_stay_where_they_were(tmp_path):
    """So that an error in the browser's console can be found in the module."""
    script = bundle("report.js", folder(tmp_path))
    code = [line for line in script.splitlines() if not line.startswith(("//", "/*", " *"))]
    assert not any(re.match(r"\s*(import|export)\b", line) for line in code)
    tail = script[script.index("// report.js\n") :].splitlines()[1:]
    assert tail.index("new App(low, high);") == GOOD["report.js"].splitlines().index("new App(low, high);")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"app": "export class App {}\nfunction hidden() {}\n"},
            "hidden is declared at top level in app.js and in ends.js",
        ),
        ({"app": "export class App {}\nconst count = 1;\n"}, "count is declared at top level in app.js and in ends.js"),
        ({"app": "export class App {}\nconst { a } = window;\n"}, "app.js takes apart a value at top level"),
        ({"app": 'import low from "./ends.js";\nexport class App {}\n'}, 'app.js:1 has "import low from'),
        ({"app": 'import * as ends from "./ends.js";\nexport class App {}\n'}, "app.js:1 has"),
        (
            {"app": 'import { low as x } from "./ends.js";\nexport class App {}\n'},
            'imports "low as x": expected a plain',
        ),
        (
            {"app": 'import { middle } from "./ends.js";\nexport class App {}\n'},
            "imports middle from ends.js, which does",
        ),
        ({"app": 'import { x } from "https://cdn.example/x.js";\nexport class App {}\n'}, "app.js:1 has"),
        ({"app": 'import { x } from "./gone.js";\nexport class App {}\n'}, "gone.js, imported by app.js, is not in"),
        ({"app": 'export class App {}\nconst x = await import("./ends.js");\n'}, "app.js:2 has"),
        ({"app": "export class App {}\nconst x = import.meta.url;\n"}, "app.js:2 has"),
        ({"app": "class App {}\nexport { App };\n"}, "imports App from app.js, which does not export it"),
        ({"app": "export class App {}\nexport default 1;\n"}, "app.js:2 has"),
        (
            {"ends": 'import { App } from "./app.js";\nexport const low = 1;\n'},
            "in a circle: app.js -> ends.js -> app.js",
        ),
    ],
)
def test_what_would_make_a_wrong_bundle_is_refused(tmp_path, changes, message):
    """With the module and the line."""
    with pytest.raises(ValueError, match=re.escape(message)):
        bundle("report.js", folder(tmp_path, **changes))


def test_the_modules_of_the_page_fit_together():
    """Those that TensorBoard serves are those of the page."""
    script = bundle("report.js")
    assert "new App(" in script
    served = {path.name for path in STATIC.glob("*.js")} - {"index.js"}
    assert set(re.findall(r"^// ([\w-]+\.js)$", script, re.MULTILINE)) == served

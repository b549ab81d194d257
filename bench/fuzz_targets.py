"""The targets of bench/fuzz.py, each a function of bytes: truetune reads them, or refuses them in its own words."""

import ast
import gzip
import io
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import atheris

_ROOT = Path(__file__).parents[1]
_WORK = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
os.environ["TRUETUNE_CACHE"] = str(_WORK / "cache")

Target = Callable[[bytes], None]


# --- readers ----------------------------------------------------------------------------------------------

TEXT_KINDS = (".jsonl", ".json", ".csv", ".tsv", ".txt")
TEXT_SEEDS: Mapping[str, Sequence[bytes]] = {
    ".jsonl": [
        b'{"text": "a", "n": [1, 2.50, null]}\n\n{"text": "\\ud83d\\ude00"}\n',
        b'[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]\n',
        b'[{"a": 1},\n {"a": 2}]',
        '\ufeff{"a": "é"}\n'.encode(),
        '{"a": "é"}\n'.encode("utf-16"),
    ],
    ".json": [
        b'{"train": [{"text": "a"}], "test": []}',
        b'{"version": 1, "rows": [{"a": {"b": "c"}}, {"a": null}]}',
        b'[{"from": "human", "value": "x"}]',
        b'{"instruction": "a",\n "output": "b"}',
    ],
    ".csv": [b'a,b\n"x, ""y""\r\nz",2\n', b"\xef\xbb\xbfFrage;Antwort\nx;y\n", b"a\n\n1\n"],
    ".tsv": [b"a\tb\n1\t2\n"],
    ".txt": [b"one\n\ntwo\r\n", "é\n".encode("utf-16-be")],
}


def readers() -> tuple[Target, list[bytes]]:
    """A file of text: the first byte says of which kind."""
    from truetune.data.blocks import Place, records_from
    from truetune.data.read import read_records
    from truetune.data.sources import SourceFile

    def target(data: bytes) -> None:
        suffix = TEXT_KINDS[data[0] % len(TEXT_KINDS)] if data else ".jsonl"
        path = _written(f"a{suffix}", data[1:])
        file = SourceFile(path, path.name)
        found = list(read_records(file))
        assert [record.where.line for record in found] == sorted({record.where.line for record in found})
        streamed = list(records_from([file], Place()))
        assert [record for _, record in streamed] == found
        if found:
            middle = streamed[len(found) // 2][0]
            assert [record for _, record in records_from([file], middle)] == found[len(found) // 2 + 1 :]

    seeds = [bytes([TEXT_KINDS.index(suffix)]) + seed for suffix, several in TEXT_SEEDS.items() for seed in several]
    return target, seeds


TABLE_KINDS = (".parquet", ".arrow", ".feather", ".jsonl.gz", ".csv.zst", ".parquet.gz", ".txt.gz", ".json.zst")


def tables() -> tuple[Target, list[bytes]]:
    """A table or a packed file: the first byte says of which kind."""
    from truetune.data.read import read_records
    from truetune.data.sources import SourceFile

    def target(data: bytes) -> None:
        suffix = TABLE_KINDS[data[0] % len(TABLE_KINDS)] if data else ".parquet"
        path = _written(f"a{suffix}", data[1:])
        list(read_records(SourceFile(path, path.name)))

    return target, [bytes([place]) + content for place, content in _packed_seeds()]


def _packed_seeds() -> list[tuple[int, bytes]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    rows = [
        {"messages": turns, "id": 7, "share": 0.5, "when": None},
        {"messages": None, "id": None, "share": 1.0, "when": "a"},
    ]
    table = pa.Table.from_pylist(rows)
    found = []
    for place, new in ((1, pa.ipc.new_file), (1, pa.ipc.new_stream), (2, pa.ipc.new_file)):
        sink = pa.BufferOutputStream()
        with new(sink, table.schema) as writer:
            writer.write_table(table)
        found.append((place, sink.getvalue().to_pybytes()))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none")
    found += [(0, sink.getvalue().to_pybytes()), (5, gzip.compress(sink.getvalue().to_pybytes()))]
    found += [(3, gzip.compress(TEXT_SEEDS[".jsonl"][0])), (6, gzip.compress(b"a\nb\n"))]
    codec = pa.Codec("zstd")
    found += [
        (4, codec.compress(TEXT_SEEDS[".csv"][0], asbytes=True)),
        (7, codec.compress(TEXT_SEEDS[".json"][0], asbytes=True)),
    ]
    return found


def _written(name: str, content: bytes) -> Path:
    path = _WORK / name
    path.write_bytes(content)
    return path


# --- rows -------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    0.5,
    1e308,
    10**30,
    "",
    "x",
    "\ud800",
    [],
    [[]],
    [7],
    {},
    {"a": 1},
    [{}],
    "2026-11-29",
]
ODD += [
    "[",
    '{"name": "w", "arguments": "{"}',
    "{'a': 1}",
    "assistant",
    "function_call",
    "é" * 300,
    float("inf"),
    float("nan"),
]


class Making:
    """Makes documents of fuzzed bytes: whole ones with some values changed, or any others."""

    def __init__(self, data: bytes, *, keys: Sequence[str], words: Sequence[Any] = ODD) -> None:
        self.data = atheris.FuzzedDataProvider(data)
        self._keys = keys
        self._words = words

    def choice(self, values: Sequence[Any]) -> Any:
        return values[self.data.ConsumeIntInRange(0, len(values) - 1)]

    def text(self, most: int = 12) -> str:
        return str(self.data.ConsumeUnicode(self.data.ConsumeIntInRange(0, most)))

    def value(self, depth: int = 3) -> Any:
        match self.data.ConsumeIntInRange(0, 7):
            case 0 if depth:
                return [self.value(depth - 1) for _ in range(self.data.ConsumeIntInRange(0, 3))]
            case 1 | 2 if depth:
                return {self.key(): self.value(depth - 1) for _ in range(self.data.ConsumeIntInRange(0, 4))}
            case 3:
                return self.text()
            case 4:
                return self.data.ConsumeIntInRange(-(2**40), 2**40)
            case 5:
                return json.dumps(self.value(depth - 1)) if depth else ""
            case _:
                return self.choice(self._words)

    def key(self) -> str:
        return self.choice(self._keys) if self.data.ConsumeIntInRange(0, 7) else self.text()

    def changed(self, document: Any) -> Any:
        """The document with up to three of its values, or keys, replaced."""
        for _ in range(self.data.ConsumeIntInRange(0, 3)):
            document = _replaced(document, self.choice(_places(document)), self)
        return document


def _places(value: Any) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *path) for key, each in inner for path in _places(each))]


def _replaced(value: Any, path: tuple[Any, ...], making: Making) -> Any:
    if not path:
        if isinstance(value, dict) and making.data.ConsumeBool():
            return {**value, making.key(): making.value(2)}
        return making.value(2)
    copy = value.copy()
    copy[path[0]] = _replaced(value[path[0]], path[1:], making)
    return copy


def _row_words() -> tuple[list[str], list[dict[str, Any]]]:
    from data.test_any_json import WHOLE
    from truetune.data import content, fields, turns

    keys = [name for names in fields._SLOTS.values() for name in names]
    keys += [
        *turns.ROLE_KEYS,
        *turns.CONTENT_KEYS,
        *turns.REASONING,
        "train",
        "mask",
        "tool_calls",
        "type",
        "arguments",
    ]
    keys += [
        *content.TEXTS,
        *content.RESULT_HOLDERS,
        "functionCall",
        "id",
        "instances",
        "chosen",
        "image",
        "json",
        "parts",
    ]
    return keys, WHOLE


def rows() -> tuple[Target, list[bytes]]:
    """Rows of JSON into examples, and mended."""
    from truetune.data.examples import Location, Record
    from truetune.data.formats import expand_record, parse_example
    from truetune.data.rules import RowError
    from truetune.data.write import to_json
    from truetune.lint.mend import MENDED, mend_record
    from truetune.lint.parts import parts_of

    keys, whole = _row_words()
    rules = frozenset(MENDED)

    def target(data: bytes) -> None:
        making = Making(data, keys=keys)
        row = making.changed(making.choice(whole))
        if not isinstance(row, dict):
            return
        options: dict[str, Any] = {"format": making.choice(["auto", "auto", "chat", "instruction", "completion"])}
        if making.data.ConsumeBool():
            options["columns"] = {making.key(): making.key()}
        for record in expand_record(Record(row, Location("a", 1))):
            with suppress(RowError):
                parts_of(parse_example(record, **options))
        mended = mend_record(Record(row, Location("a", 1)), rules=rules, values={"x": "y"}, **options)
        again = mend_record(Record(mended.fields, Location("a", 1)), rules=rules, values={"x": "y"}, **options)
        assert to_json(again.fields) == to_json(mended.fields)

    return target, _noise()


def lint() -> tuple[Target, list[bytes]]:
    """Rows held against every rule that needs no model."""
    from truetune.config.schema import CheckConfig, Config, DataConfig, ModelConfig
    from truetune.pipeline.check import check_rows

    keys, whole = _row_words()
    config = Config(model=ModelConfig(name_or_path="none"), data=DataConfig(num_proc=1), check=CheckConfig())

    def target(data: bytes) -> None:
        making = Making(data, keys=keys)
        several = [making.changed(making.choice(whole)) for _ in range(making.data.ConsumeIntInRange(1, 4))]
        report = check_rows(config, source=[row for row in several if isinstance(row, dict)]).report
        assert report.rows_rejected == sum(report.rejected.values())
        json.dumps(report.as_json())

    return target, _noise()


def _noise() -> list[bytes]:
    """Seeds for documents that are made of bytes: there is nothing better."""
    return [bytes((place * step + place // 7) % 256 for place in range(200)) for step in (1, 3, 7, 31, 101, 197)]


# --- templates --------------------------------------------------------------------------------------------

JINJA = [
    "{% for m in messages %}", "{% endfor %}", "{{ m['content'] }}", "{{ m.role }}", "{{ bos_token }}",
    "{{ eos_token }}",
    "{% if m['role'] == 'assistant' %}", "{% else %}", "{% endif %}", "{% generation %}", "{% endgeneration %}",
    "{{ raise_exception('no') }}", "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", "<|im_end|>\n",
    "<|im_start|>", "{{ m['tool_calls'] | tojson }}", "{{ m['content'] | trim }}", "{{ messages[0].content[3:] }}",
    "{{ loop.index0 % 2 }}", "{% set ns = namespace(x=0) %}", "{{ tools | tojson }}", "{{ strftime_now('%d') }}",
    "{{ m['tool_calls'][0]['function']['arguments'] + '' }}", "{{ m.content.split('</think>')[-1] }}", "{{ x", "%}",
    "{% macro f(a) %}", "{% endmacro %}", "{{ f(1) }}", "{instruction}", "{input}", "{output}", "{system}",
    "{", "}", "\n",
]  # fmt: skip


def templates() -> tuple[Target, list[bytes]]:
    """Chat templates and format texts, each over rows of several forms: rendered, located, tokenized, asked."""
    from conftest import CHATML, STRICT, THINKING, TOOLS, byte_tokenizer
    from truetune.data.examples import Location, Record
    from truetune.data.formats import parse_example
    from truetune.data.render import render, render_prompt
    from truetune.data.rules import RowError
    from truetune.data.templates import load_template
    from truetune.data.tokenize import tokenize
    from truetune.errors import TruetuneError

    _, whole = _row_words()
    examples = []
    for row in whole:
        with suppress(RowError):
            examples.append(parse_example(Record(row, Location("a", 1))))
    whole_templates = [CHATML, STRICT, THINKING, TOOLS]
    tokenizer = byte_tokenizer(chat_template=CHATML)

    def target(data: bytes) -> None:
        making = Making(data, keys=["a"])
        pieces = [making.choice(JINJA) if making.data.ConsumeIntInRange(0, 9) else making.text() for _ in range(12)]
        own = making.choice(whole_templates)
        cut = making.data.ConsumeIntInRange(0, len(own))
        text = making.choice([own[:cut] + "".join(pieces) + own[cut:], "".join(pieces), own])
        if "range" in text or "*" in text:
            return  # A loop without an end is its author's.
        tokenizer.chat_template = text
        name = making.choice(["auto", "model", "alpaca", "".join(pieces)])
        options = {
            "train_on": making.choice(["assistant", "last_turn", "all"]),
            "thinking": making.choice(["keep", "mask", "empty"]),
            "control": making.choice(["reject", "as_text"]),
        }
        template = load_template(tokenizer, template=name, **options)
        for example in examples:
            try:
                rendered = render(example, template=template)
                assert all(0 <= start <= end <= len(rendered.text) for start, end in rendered.spans)
                tokenize([rendered], template=template)
                render_prompt(example, template=template)
            except RowError:
                continue
            except TruetuneError:
                return

    return target, _noise()


# --- configs ----------------------------------------------------------------------------------------------


def config() -> tuple[Target, list[bytes]]:
    """A config file of any bytes; what is taken is dumped and read back, and a setting is written into it."""
    from truetune.config.edit import with_settings
    from truetune.config.load import dump_config, load_config

    def target(data: bytes) -> None:
        path = _written("run.yaml", data)
        loaded = load_config(path).config
        path.write_text(with_settings(path, {"training.seed": 7}), encoding="utf-8")
        assert load_config(path).config.training.seed == 7
        path.write_text(dump_config(loaded), encoding="utf-8")
        assert load_config(path).config == loaded

    seeds = [path.read_bytes()[:3000] for path in sorted((_ROOT / "examples").rglob("*.yaml"))]
    seeds += [
        b"model: &m {name_or_path: m}\ndata: {<<: *m, path: [a, {path: b, weight: 2}]}",
        b'{"model": {"name_or_path": "m"}}',
    ]
    seeds += [
        b"%YAML 1.2\n---\nmodel: !!str m\n? lr\n: 2e-4\n# end",
        b"training:\n  learning_rate: |\n    1\n",
        b"a: &a [*a]",
    ]
    return target, seeds


def settings() -> tuple[Target, list[bytes]]:
    """key=value texts, and Python's keywords."""
    from truetune.config.load import dump_config, load_config
    from truetune.config.names import ALIASES, REFUSED
    from truetune.config.schema import SECTIONS, setting_names

    names = [*setting_names(), *(name.rpartition(".")[2] for name in setting_names()), *ALIASES, *REFUSED, *SECTIONS]
    words = [
        "auto",
        "true",
        "null",
        "1",
        "-1",
        "2e-4",
        ".inf",
        "all",
        "steps",
        "[a, b]",
        "{a: b}",
        "lora",
        "x.jinja",
        "&a [*a]",
        "!!int x",
    ]

    def target(data: bytes) -> None:
        making = Making(data, keys=names)
        count = making.data.ConsumeIntInRange(0, 4)
        texts = [
            f"{making.key()}={making.choice(words) if making.data.ConsumeBool() else making.text(30)}"
            for _ in range(count)
        ]
        given = {making.key(): making.value() for _ in range(making.data.ConsumeIntInRange(0, 3))}
        loaded = load_config({"model": "m"}, overrides=texts, settings=given).config
        path = _written("dumped.yaml", dump_config(loaded).encode())
        assert load_config(path).config == loaded

    return target, _noise()


def imports() -> tuple[Target, list[bytes]]:
    """Configs of other tools: bytes as they come, or one of theirs with values changed."""
    from ruamel.yaml import YAML
    from shapes import TOOLS

    from truetune.config.load import load_config
    from truetune.migrate.detect import TOOLS as NAMES
    from truetune.migrate.importer import import_file

    shapes = [shape.text for tool, several in TOOLS.items() if tool != "script" for shape in several]
    documents = [YAML(typ="safe").load(text) for text in shapes]
    keys = sorted(
        {str(step) for each in documents for path in _places(each) for step in path if isinstance(step, str)}
    )

    def target(data: bytes) -> None:
        if data[:1] == b"\0":
            import_file(_written("foreign.yaml", data[1:]))
            return
        making = Making(data, keys=keys)
        document = making.changed(making.choice(documents))
        tool = making.choice([None, *(name for name in NAMES if name != "script")])
        found = import_file(_written("foreign.json", json.dumps(document).encode()), tool=tool)
        json.dumps(found.as_json(), default=str)
        list(found.told())
        path = _written("imported.yaml", found.as_yaml().encode("utf-8", "surrogatepass"))
        assert load_config(path).config == load_config(dict(found.translation.settings)).config

    return target, [*(b"\0" + text.encode()[:3000] for text in shapes[::3]), *_noise()]


EXPRESSIONS = [
    "None", "[]", "{}", "-1", "'x'", "2 ** 999", "[*a]", "{**b}", "lambda x: x", "f(*a, **b)", "x[y]", "f'{x!r:>9}'",
    "...",
    "1 if x else 2", "b'a'", "1j", "{1: 2}", "{'a'}", "(yield)", "not x",
    "x.y.z", "'\\ud800'", "1e999", "'{'.format(a)",
    "[1][9]",
]  # fmt: skip
_FIELDS = ("value", "body", "iter", "test", "func", "left", "right", "elt")


def scripts() -> tuple[Target, list[bytes]]:
    """Training scripts: bytes as they come, or one with expressions changed."""
    from shapes import TOOLS

    from truetune.config.load import load_config
    from truetune.migrate.importer import import_file

    whole = [shape.text for shape in TOOLS["script"]]

    def target(data: bytes) -> None:
        if data[:1] == b"\0":
            import_file(_written("train.py", data[1:]))
            return
        making = Making(data, keys=["a"])
        tree = ast.parse(making.choice(whole))
        for _ in range(making.data.ConsumeIntInRange(1, 5)):
            places = [
                (node, name)
                for node in ast.walk(tree)
                for name in _FIELDS
                if isinstance(getattr(node, name, None), ast.expr)
            ]
            node, name = making.choice(places)
            setattr(node, name, ast.parse(making.choice(EXPRESSIONS), mode="eval").body)
        try:
            text = ast.unparse(ast.fix_missing_locations(tree))
        except (ValueError, TypeError):
            return
        found = import_file(_written("train.py", text.encode("utf-8", "surrogatepass")))
        path = _written("imported.yaml", found.as_yaml().encode("utf-8", "surrogatepass"))
        assert load_config(path).config == load_config(dict(found.translation.settings)).config

    return target, [*(b"\0" + text.encode()[:3000] for text in whole[::3]), *_noise()]


# --- runs -------------------------------------------------------------------------------------------------


def runs() -> tuple[Target, list[bytes]]:
    """The files of a run, one of them damaged, as the list, the comparison and the report read them."""
    from run_files import FILES, write_run
    from truetune.console.runs import show_comparison, show_runs
    from truetune.errors import TruetuneError
    from truetune.pipeline.review.compare import compare_runs
    from truetune.pipeline.review.report import write_report
    from truetune.pipeline.run import open_run
    from truetune.runs.ledger import ORDERS, find_runs, in_order

    keys = sorted(
        {
            step
            for several in FILES.values()
            for each in several
            for path in _places(each)
            for step in path
            if isinstance(step, str)
        }
    )
    write_run(_WORK / "runs" / "b", FILES)

    def target(data: bytes) -> None:
        making = Making(data, keys=keys)
        name = making.choice(list(FILES))
        write_run(_WORK / "runs" / "a", FILES)
        path = _WORK / "runs" / "a" / name
        if making.data.ConsumeIntInRange(0, 4) == 0:
            path.write_bytes(making.data.ConsumeBytes(200))
        else:
            path.write_text("".join(json.dumps(making.changed(each)) + "\n" for each in FILES[name]))
        found = find_runs([_WORK / "runs"], settings=["data.path"])
        for order in ORDERS:
            in_order(found, order)
        with redirect_stdout(io.StringIO()):
            show_runs(found, found)
        write_report(_WORK / "runs" / "a", _WORK / "a.html")
        with suppress(TruetuneError):
            open_run(_WORK / "runs" / "a")
        with redirect_stdout(io.StringIO()):
            show_comparison(compare_runs([_WORK / "runs" / "a", _WORK / "runs" / "b"]))

    return target, _noise()


# --- running ----------------------------------------------------------------------------------------------

TARGETS: Mapping[str, Callable[[], tuple[Target, list[bytes]]]] = {
    each.__name__: each for each in (readers, tables, rows, lint, templates, config, settings, imports, scripts, runs)
}


def watched(target: Target, findings: Path) -> Target:
    """The target, at whose errors nothing ends: each place that raises one leaves one input and its traceback."""
    from truetune.errors import TruetuneError

    def run(data: bytes) -> None:
        try:
            target(data)
        except TruetuneError:
            return
        except Exception as error:  # noqa: BLE001 - what else there may be is what is looked for
            stack = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in stack if "truetune" in frame.filename] or stack
            name = f"{type(error).__name__}-{Path(own[-1].filename).stem}-{own[-1].lineno}"
            if not (findings / f"{name}.txt").exists():
                (findings / f"{name}.bin").write_bytes(data)
                told = "".join(traceback.format_exception(error))
                (findings / f"{name}.txt").write_text(told[-4000:], encoding="utf-8", errors="backslashreplace")

    return run


def main() -> None:
    name, findings, *arguments = sys.argv[1:]
    for folder in (_ROOT / "tests", _ROOT / "tests" / "migrate"):
        sys.path.insert(0, str(folder))
    with atheris.instrument_imports(include=["truetune", "ruamel"]):
        target, seeds = TARGETS[name]()
    corpus = Path(arguments[-1])
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *arguments], watched(target, Path(findings)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()

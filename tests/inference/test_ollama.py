"""A Modelfile prompts as training did: its Go template makes the chat template's text of every conversation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl

from conftest import CHATML, CHATML_BOS, STRICT, byte_tokenizer
from truetune.errors import TemplateError
from truetune.inference.go_template import GoTemplateError, render_go
from truetune.inference.ollama import (
    Modelfile,
    as_ollama,
    find_pieces,
    go_template,
    parse_modelfile,
    write_modelfile,
)

SEEING = ("idefics", "llava", "smolvlm")
"""Templates of models that take a message as a list of parts."""
TEMPLATES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted(Path(trl.__file__).parent.rglob("*.jinja"))
    if not path.name.startswith(SEEING)
}
TALK = [
    {"role": "user", "content": 'Say "hi"\n\nand {{ more }}'},
    {"role": "assistant", "content": "hi\\é"},
    {"role": "user", "content": "bye 🙂"},
]
SYSTEM = {"role": "system", "content": "Be kind.\nBe brief."}
SYSTEM_LAST = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.system = m['content'] + '\n\n' %}"
    "{% elif m['role'] == 'user' %}[INST] {% if loop.last %}{{ ns.system }}{% endif %}{{ m['content'] }}[/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}" + CHATML
)
NUMBERED = (
    "{% for m in messages %}{{ loop.index }} {{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}answer:{% endif %}"
)


def rendering(template: str) -> Callable[[Any], str | None]:
    tokenizer = byte_tokenizer(chat_template=template)

    def render(messages: Any) -> str | None:
        from jinja2 import TemplateError as Refusal

        try:
            return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
        except (Refusal, TypeError):
            return None

    return render


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_of_trl_is_put_into_go(name: str) -> None:
    render = rendering(TEMPLATES[name])
    template = go_template(render)
    for messages in (TALK[:1], TALK, [SYSTEM, *TALK[:1]], [SYSTEM, *TALK]):
        if (wanted := render(messages)) is not None:
            assert render_go(template, as_ollama(messages)) == wanted


@pytest.mark.parametrize("template", [CHATML, STRICT, SYSTEM_LAST, DEFAULT_SYSTEM])
def test_what_a_template_says_by_itself_is_in_the_modelfile_s(template: str) -> None:
    render = rendering(template)
    for messages in (TALK, [SYSTEM, *TALK]):
        if (wanted := render(messages)) is not None:
            assert render_go(go_template(render), as_ollama(messages)) == wanted


def test_the_bos_that_the_loader_adds_is_left_out() -> None:
    render = rendering(CHATML_BOS)
    template = go_template(render, bos="<s>")
    assert "<s>" not in template
    assert "<s>" + render_go(template, as_ollama(TALK)) == render(TALK)
    with pytest.raises(TemplateError, match="puts no <s> first"):
        go_template(rendering(CHATML), bos="<s>")


@pytest.mark.parametrize(
    "template",
    [NUMBERED, CHATML.replace("{{ m['content'] }}", "{{ m['content'] | upper }}"), "{{ raise_exception('no') }}"],
)
def test_a_template_that_cannot_be_put_so_is_refused_with_the_way_out(template: str) -> None:
    with pytest.raises(TemplateError, match="cannot be put into Ollama's words") as caught:
        go_template(rendering(template))
    assert "--to gguf" in str(caught.value.hint)


def test_a_system_message_that_goes_elsewhere_is_refused_and_not_dropped() -> None:
    behind = (
        "{% for m in messages if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% for m in messages if m['role'] == 'system' %}({{ m['content'] }}){% endfor %}<assistant>"
    )
    with pytest.raises(TemplateError, match="Be brief"):
        go_template(rendering(behind))


def test_the_pieces_stand_around_the_messages() -> None:
    pieces = find_pieces(rendering(CHATML))
    assert pieces.opening == "<|im_start|>user\n"
    assert pieces.answered == pieces.asked == "<|im_end|>\n<|im_start|>assistant\n"
    assert pieces.between == "<|im_end|>\n<|im_start|>user\n"
    assert pieces.system == ("<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n")


def test_a_modelfile_is_read_back_as_it_was_meant(tmp_path: Path) -> None:
    parameters = (("num_ctx", 512), ("stop", "<|im_end|>"), ("stop", '"\n é'))
    modelfile = Modelfile("./x.gguf", go_template(rendering(CHATML)), parameters, ("a note",))
    write_modelfile(tmp_path / "Modelfile", modelfile)
    assert parse_modelfile((tmp_path / "Modelfile").read_text()) == modelfile


def test_a_template_that_ends_the_modelfile_s_text_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TemplateError):
        write_modelfile(tmp_path / "Modelfile", Modelfile("./x.gguf", 'a"""\nSYSTEM b', ()))


@pytest.mark.parametrize("text", ["FROM x", 'TEMPLATE """x"""', 'FROM x\nTEMPLATE """x"""\nWHAT is this'])
def test_what_is_no_modelfile_is_refused(text: str) -> None:
    with pytest.raises(TemplateError):
        parse_modelfile(text)


# --- Go's templates: each of these was run through Go's own text/template ----------------------------------


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a {{- .System }} b", "as b"),
        ("a {{ .System -}} b", "a sb"),
        ('{{ "x\\n" }}  {{- "\\u0022" }}', 'x\n"'),
        ("{{ if .System }}yes{{ else }}no{{ end }}", "yes"),
        ("{{ if .None }}yes{{ else if .System }}else{{ else }}no{{ end }}", "else"),
        ("{{ range .Messages }}{{ .Role }},{{ end }}", "user,assistant,"),
        ("{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Content }}{{ $.System }}{{ end }}", "0qs1as"),
        ("{{ $a := true }}{{ range .Messages }}{{ if $a }}x{{ end }}{{ $a = false }}{{ end }}", "x"),
        ("{{ range $i, $m := .Messages }}{{ if eq (len (slice $.Messages $i)) 1 }}last{{ end }}{{ end }}", "last"),
        ('{{ if and .System (ne .System "x") (not .None) }}y{{ end }}{{ if or .None (gt 2 1) }}z{{ end }}', "yz"),
    ],
)
def test_go_is_evaluated_as_go_does(template: str, text: str) -> None:
    messages = [{"Role": "user", "Content": "q"}, {"Role": "assistant", "Content": "a"}]
    assert render_go(template, {"System": "s", "None": "", "Messages": messages}) == text


@pytest.mark.parametrize("template", ["{{ if .System }}x", "x{{ end }}", "{{ shout .System }}"])
def test_what_is_no_go_is_refused(template: str) -> None:
    with pytest.raises(GoTemplateError):
        render_go(template, {"System": "s"})

"""The page of each rule: what it finds, why it hurts, a row that trips it, one that does not, and the remedy."""

from importlib import resources

from truetune.data.catalog import RULES, Rule


def page(rule: Rule) -> str:
    """The rule's page, in Markdown."""
    return resources.files("truetune.lint").joinpath("pages", f"{rule.code}.md").read_text(encoding="utf-8")


def summary(rule: Rule) -> str:
    """The first sentence of the rule's page."""
    return next(line for line in page(rule).splitlines()[1:] if line)


def index() -> list[tuple[str, str, str, str]]:
    """Code, name, severity and summary of every rule."""
    return [(rule.code, rule.name, rule.severity, summary(rule)) for rule in RULES.values()]

"""Rules as gbnf.py reads them -> a Lark grammar as llguidance understands it.

The library reads lexemes greedily: where a lexeme may go on, it does, even if what has to follow begins with the same
character. So a rule becomes a lexeme (which is fast) only where nothing that can follow it could also continue it, or
where it is the whole grammar; else it stays a rule over single characters. A character that both may continue is then
lost to one of them: what comes out is always of the grammar, though not all that the grammar allows may come out.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

from octavo.grammar.gbnf import EMPTY, GrammarError, Tree

ANY = (1 << 129) - 1  # a set of characters: a bit for each of ASCII, and one for all others
ROOTS = ("root", "start")


def to_lark(rules: Mapping[str, Tree]) -> str:
    """The grammar. GrammarError for rules that are missing, or that never come to an end."""
    root = next((name for name in ROOTS if name in rules), None)
    if root is None:
        raise GrammarError(f"there is no rule `{ROOTS[0]}`")
    rules = _reached(rules, root)
    if root not in _resolved(rules, _ends):
        raise GrammarError(f"the rule `{root}` never comes to an end")
    lexemes = _lexemes(rules, root)
    names = {name: f"L{at}" if name in lexemes else f"r{at}" for at, name in enumerate(rules)}
    lines = [f"start: {names[root]}"]
    lines += [f"{names[name]}: {_shown(tree, names)}" for name, tree in rules.items()]
    return "\n".join(lines) + "\n"


def _children(tree: Tree) -> tuple[Tree, ...]:
    kind = tree[0]
    if kind in ("seq", "alt"):
        found: tuple[Tree, ...] = tree[1]
        return found
    return (tree[1],) if kind == "rep" else ()


def _named(tree: Tree) -> Iterator[str]:
    """Rules that a tree names."""
    if tree[0] == "rule":
        yield tree[1]
    for each in _children(tree):
        yield from _named(each)


def _reached(rules: Mapping[str, Tree], root: str) -> dict[str, Tree]:
    """Those that the root needs."""
    found, waiting = {root: rules[root]}, [root]
    while waiting:
        name = waiting.pop()
        for other in _named(rules[name]):
            if other not in rules:
                raise GrammarError(f"the rule `{name}` names `{other}`, which is not there")
            if other not in found:
                found[other] = rules[other]
                waiting.append(other)
    return {name: tree for name, tree in rules.items() if name in found}


def _users(rules: Mapping[str, Tree]) -> Mapping[str, list[str]]:
    """Rule -> rules that name it."""
    users: dict[str, list[str]] = defaultdict(list)
    for name, tree in rules.items():
        for other in set(_named(tree)):
            users[other].append(name)
    return users


def _resolved(rules: Mapping[str, Tree], test: Callable[[Tree, set[str]], bool]) -> set[str]:
    """The least set of rules such that `test(tree, set)` holds for each: a rule is looked at again when one that it
    names has joined."""
    users = _users(rules)
    done: set[str] = set()
    waiting = list(rules)
    while waiting:
        name = waiting.pop()
        if name not in done and test(rules[name], done):
            done.add(name)
            waiting += users[name]
    return done


def _ends(tree: Tree, done: set[str]) -> bool:
    """Whether some text is derived by the tree, if one is by each rule in `done`."""
    kind = tree[0]
    if kind == "rule":
        return tree[1] in done
    if kind == "alt":
        return any(_ends(each, done) for each in tree[1])
    if kind == "rep":
        return tree[2] == 0 or _ends(tree[1], done)
    return all(_ends(each, done) for each in _children(tree))


def _lexemes(rules: Mapping[str, Tree], root: str) -> set[str]:
    """Rules that become lexemes: of no recursion, and with nothing behind them that could continue them."""
    regular = _resolved(rules, _all_named)
    if root in regular:
        return set(rules)
    facts = _Facts(rules)
    alone = {name: rules[name] for name in rules if name in regular and not facts.more[name] & facts.follow[name]}
    return _resolved(alone, _all_named)  # a lexeme is made of lexemes


def _all_named(tree: Tree, done: set[str]) -> bool:
    return all(name in done for name in _named(tree))


class _Facts:
    """Which rules may be empty, what they begin with, what may continue a complete text of theirs, and what may follow
    it: as for a parser's table."""

    def __init__(self, rules: Mapping[str, Tree]) -> None:
        self.rules = rules
        self.empty = _resolved(rules, self._empty)
        self.first, self.more, self.follow = (dict.fromkeys(rules, 0) for _ in range(3))
        users = _users(rules)
        self._fill(self.first, self.begins, users)
        self._fill(self.more, self.goes_on, users)
        waiting = list(rules)
        while waiting:
            name = waiting.pop()
            self._changed: list[str] = []
            self._pass_on(rules[name], self.follow[name])
            waiting += self._changed

    def _fill(self, table: dict[str, int], value: Callable[[Tree], int], users: Mapping[str, list[str]]) -> None:
        """Values of all rules, each told anew when one that it names has changed."""
        waiting = list(self.rules)
        while waiting:
            name = waiting.pop()
            found = value(self.rules[name])
            if found != table[name]:
                table[name] = found
                waiting += users[name]

    def _empty(self, tree: Tree, done: set[str]) -> bool:
        kind = tree[0]
        if kind == "text":
            return not tree[1]
        if kind == "rule":
            return tree[1] in done
        if kind == "alt":
            return any(self._empty(each, done) for each in tree[1])
        if kind == "rep":
            return tree[2] == 0 or self._empty(tree[1], done)
        return kind == "seq" and all(self._empty(each, done) for each in tree[1])

    def may_be_empty(self, tree: Tree) -> bool:
        return self._empty(tree, self.empty)

    def begins(self, tree: Tree) -> int:
        """Characters that a text of the tree may begin with."""
        kind = tree[0]
        if kind == "text":
            return _bit(ord(tree[1][0])) if tree[1] else 0
        if kind == "set":
            return _set(tree[1], tree[2])
        if kind == "rule":
            return self.first[tree[1]]
        found = 0
        for each in _children(tree):
            found |= self.begins(each)
            if kind == "seq" and not self.may_be_empty(each):
                break
        return found

    def goes_on(self, tree: Tree) -> int:
        """Characters that may continue a text that is complete already."""
        kind = tree[0]
        if kind == "rule":
            return self.more[tree[1]]
        if kind == "rep":
            again = self.begins(tree[1]) if tree[3] is None or tree[3] > tree[2] else 0
            return self.goes_on(tree[1]) | again
        if kind == "seq":
            found = 0
            for each in tree[1]:
                found = (found | self.begins(each) if self.may_be_empty(each) else 0) | self.goes_on(each)
            return found
        if kind == "alt":
            return self._any_goes_on(tree[1])
        return 0

    def _any_goes_on(self, trees: tuple[Tree, ...]) -> int:
        """Of alternatives: two that begin alike may be each other's continuation."""
        seen = found = 0
        for each in trees:
            begin = self.begins(each)
            if begin & seen:
                return ANY
            seen |= begin
            found |= self.goes_on(each)
        return found | seen if any(self.may_be_empty(each) for each in trees) else found

    def _pass_on(self, tree: Tree, behind: int) -> None:
        """Tell every rule named in the tree what may follow it, if `behind` may follow the tree."""
        kind = tree[0]
        if kind == "rule":
            if behind & ~self.follow[tree[1]]:
                self.follow[tree[1]] |= behind
                self._changed.append(tree[1])
        elif kind == "rep":
            again = self.begins(tree[1]) if tree[3] is None or tree[3] > 1 else 0
            self._pass_on(tree[1], behind | again)
        elif kind == "alt":
            for each in tree[1]:
                self._pass_on(each, behind)
        elif kind == "seq":
            for each in reversed(tree[1]):
                self._pass_on(each, behind)
                behind = self.begins(each) | (behind if self.may_be_empty(each) else 0)


def _bit(code: int) -> int:
    return 1 << min(code, 128)


def _set(negated: bool, ranges: tuple[tuple[int, int], ...]) -> int:
    found = 0
    for low, high in ranges:
        for code in range(low, min(high, 128) + 1):
            found |= 1 << code
        if high >= 128:
            found |= 1 << 128
    return (ANY & ~found) | (1 << 128) if negated else found


# The text


def _shown(tree: Tree, names: Mapping[str, str]) -> str:
    kind = tree[0]
    if kind == "text":
        return json.dumps(tree[1], ensure_ascii=False)
    if kind == "rule":
        return names[tree[1]]
    if kind == "set":
        return f"/{_class(tree[1], tree[2])}/"
    if kind == "rep":
        if tree[1] == EMPTY or (tree[1][0] == "text" and not tree[1][1]):
            return '""'
        least, most = tree[2:]
        times = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((least, most))
        times = times or f"{{{least},{'' if most is None else most}}}"
        return f"({_shown(tree[1], names)}){times}"
    if kind == "seq":
        return " ".join(_shown(each, names) for each in tree[1]) if tree[1] else '""'
    return "(" + " | ".join(_shown(each, names) for each in tree[1]) + ")"


def _class(negated: bool, ranges: tuple[tuple[int, int], ...]) -> str:
    """A class of characters in a regular expression, all of them by their numbers."""
    if not ranges:
        return r"(.|\n)"
    inside = "".join(f"\\x{{{low:x}}}" + (f"-\\x{{{high:x}}}" if high > low else "") for low, high in ranges)
    return f"[{'^' if negated else ''}{inside}]"

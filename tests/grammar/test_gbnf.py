"""GBNF and EBNF: what is understood, what comes out, and that every broken text is an error with its place."""

import time

import pytest

from octavo.errors import InvalidRequest
from octavo.grammar.gbnf import GrammarError, read_gbnf
from octavo.grammar.matcher import as_lark
from octavo.grammar.rules import to_lark
from octavo.structured_outputs import StructuredOutputsParams
from tests.grammar.small_vocabulary import accepts

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"""
ARITHMETIC = """
root ::= (expr "=" ws term "\n")+
expr ::= term ([-+*/] term)*
term ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num ::= [0-9]+ ws
ws ::= [ \t\n]*
"""
LIST = """
root ::= item+
item ::= "- " [^\r\n\x0b\x0c\x85\u2028\u2029]+ "\n"
"""
JAPANESE = """
root ::= jp-char+ ([ \t\n] jp-char+)*
jp-char ::= hiragana | katakana | punctuation | cjk
hiragana ::= [ぁ-ゟ]
katakana ::= [ァ-ヿ]
punctuation ::= [、-〾]
cjk ::= [一-鿿]
"""

# grammar, texts that are of it, texts that are not
CASES: list[tuple[str, list[str], list[str]]] = [
    (JSON, ['{"a": [1, -2.5e+1, "x\\n", null]}', "{}", '{\n  "a":{}}\n'], ["[]", '{"a" 1}', '{"a":01}', "{"]),
    (ARITHMETIC, ["x +1= 2\n", "(a*b)/c1=(1+2) \nq=1\n"], ["=1\n", "x=", "x+=1\n", "x+ 1=2\n"]),
    (LIST, ["- a\n- bé\n"], ["- \n", "-a\n", "- a"]),
    (JAPANESE, ["こんにちは 日本", "カ"], ["abc", " カ"]),
    ('root ::= "a" | "b"\n  | "c"', ["a", "b", "c"], ["", "ab"]),
    ("root ::= (x{2,3}){2}\nx ::= [a-b]", ["abab", "aaaaaa"], ["aaa", "a" * 7]),
    ('root ::= "a"{3}"b"{2,}"c"{,2}', ["aaabb", "aaabbbcc"], ["aab", "aaab", "aaabbccc"]),
    ('root ::= ""{2,3} "a"', ["a"], ["", "aa"]),
    ('root ::= ("" | "b")* "a"', ["a", "bba"], ["b"]),
    ('root ::= . "\\x41" "\\u00e9" "\\U0001F600"', ["éAé😀", "\nAé😀"], ["Aé😀"]),
    ("root ::= [^^-] [\\]a\\-z]", ["a]", "é-", "xz"], ["^]", "-a", "ab"]),
    ("start ::= 'x' /* a comment */ y\ny ::= 'y'", ["xy"], ["x"]),
    ('root ::= "(" root ")" | ""', ["", "(())"], ["(", "())"]),
    ('root ::= root "a" | "b"', ["b", "baa"], ["a", ""]),
    # A number goes on into what looks like its end: one lexeme of the whole keeps the two apart.
    ('root ::= [a-z]+ "end"', ["friend", "friendend"], ["frien"]),
    ('root ::= "(" word "end)" | "[" root "]"\nword ::= [a-c]+', ["(abend)", "[(aend)]"], ["(end)"]),
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_languages(number: int) -> None:
    grammar, right, wrong = CASES[number]
    asked = StructuredOutputsParams(grammar=grammar)
    assert [text for text in right if not accepts(asked, text)] == []
    assert [text for text in wrong if accepts(asked, text)] == []


def test_lark_is_passed_on() -> None:
    for text in ('start: "a" /[bc]+/', "%llguidance {}\nstart: X\nX: /a[bc]+/", 'start[capture]: "ab" "c"?'):
        assert as_lark(text) == text
        assert accepts(StructuredOutputsParams(grammar=text), "abc")


BROKEN: list[tuple[str, str]] = [
    ("", "no rule"),
    ("root", "name ::="),
    ('root = "a"', "not understood"),
    ('root ::= "a', "not understood"),
    ("root ::= [a", "not understood"),
    ("root ::= []", "no character"),
    ("root ::= [z-a]", "ends before it begins"),
    ('root ::= ("a"', "not closed"),
    ('root ::= "a")', "expected"),
    ("root ::= *", "nothing before it"),
    ('root ::= "a"{3,2}', "counts"),
    ('root ::= "a"{99999}', "counts"),
    ('root ::= "a"{}', "number is missing"),
    ('root ::= "\\u12"', "hexadecimal"),
    ('root ::= "\\uD800"', "no character U+D800"),
    ("root ::= other", "`other`, which is not there"),
    ('other ::= "a"', "no rule `root`"),
    ('root ::= "a"\nroot ::= "b"', "twice"),
    ("root ::= root", "never comes to an end"),
    ('root ::= "a" x\nx ::= y "b"\ny ::= x', "never comes to an end"),
    ("root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000, "nested deeper"),
    ("root ::= " + "(" * 30_000, "nested deeper"),
    ('root ::= "a"\x00', "not understood"),
]


@pytest.mark.parametrize(("grammar", "why"), BROKEN)
def test_broken_texts(grammar: str, why: str) -> None:
    with pytest.raises(GrammarError, match=why.replace("+", r"\+")) as caught:
        to_lark(read_gbnf(grammar))
    assert len(str(caught.value)) < 300


def test_the_place_is_told() -> None:
    with pytest.raises(GrammarError, match="line 3, at '@'"):
        read_gbnf('root ::= "a"\n# comment\n@')


def test_long_chains_of_rules() -> None:
    """Each rule names the next twice: what they stand for together doubles with each."""
    chain = "\n".join(f"r{at} ::= r{at + 1} r{at + 1}" for at in range(2000))
    begin = time.process_time()
    made = to_lark(read_gbnf(f'root ::= r0 | "a"\n{chain}\nr2000 ::= "b"?'))
    assert made.count("\n") == 2003 and time.process_time() - begin < 20
    small = StructuredOutputsParams(
        grammar="root ::= r0\n" + "\n".join(f"r{k} ::= r{k + 1} r{k + 1}" for k in range(40)) + '\nr40 ::= "b"'
    )
    try:
        accepts(small, "b")
    except InvalidRequest as error:
        assert error.param == "structured_outputs.grammar"

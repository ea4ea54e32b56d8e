"""About a megabyte of mixed text, the same in every run of one Python: source code, many scripts, odd characters."""

import functools
import pathlib
import random
import sysconfig
import unicodedata

PIECES = (
    "The quick brown fox can't jump over 13 lazy dogs; it's 3.14159, they'll say, or 1,000,000.5 (maybe)...\n",
    "  two  spaces\tand\ttabs   \n\n\n   then   42   numbers 007 and 2024-11-23T20:45:01Z\r\n\r\nCRLF  \r lone CR\n",
    "def f(x: int) -> str:\n    return f\"{x!r:>10}\" if x != 0 else ''  # comment\n\n\nclass A(B):\n\tpass\n",
    '#include <stdio.h>\nint main(void) { for (int i = 0; i < 10; ++i) printf("%d\\n", i); return 0xFF & ~1u; }\n',
    '{"a": [1, 2.5e-10, null, true], "b": {"c": "\\u00e9\\n"}}\n<div class="x">&nbsp;</div>\nSELECT * FROM t;\n',
    "敏捷的棕色狐狸跳过了懒狗。人工智能模型在2024年取得了很大进展，价格为￥１２３。\n",
    "吾輩は猫である。名前はまだ無い。カタカナとひらがなとｶﾅ、漢字〆々ー。\n",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. ㄱㄴㄷ\n",
    "الطقس جميل اليوم، والسَّماءُ صافيةٌ ١٢٣٤٥. שלום עולם, מה שלומך?\n",
    "नमस्ते दुनिया, यह एक परीक्षण है। १२३ क्षत्रिय ज्ञान। বাংলা ভাষা தமிழ் ภาษาไทย ລາວ\n",
    "Съешь ещё этих мягких французских булок, да выпей чаю. Ελληνικά, ΑΒΓ. Ünïcödé naïve façade Straße ǅ ŉ\n",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵 👍🏽 ❤️ ☺︎ 🤷🏿‍♀️ 1️⃣ 𝒜𝓁𝑔ℯ𝒷𝓇𝒶 𝟘𝟙𝟚 🀄\n",
    "e\u0301 a\u030a\u0323 n\u0303o\u0308 Z\u0351\u036b\u0343a\u0324\u0348l\u0356\u0349go \u1112\u1161\u11ab\n",
    "\x00\x01\x07\x08\x0b\x0c\x1b[31mred\x1b[0m\x7f\x85\xa0\xad\u200b\u200c\u200d\u200e\u2028\u2029\ufeff\ufffd\uffff\n",
    "½ ² ³ ¼ Ⅳ ⅷ ① ㊿ ٣ ৫ ๙ 〇 一二三 １２ 𝟡 \u3000wide\u3000space\u2003em\u202fnnbsp\n",
    "!!! ??? ... --- === *** ``` ~~~ '''quotes''' \u201ccurly\u201d \u2018n\u2019 \u00abg\u00bb \u2014\u2026\n",
    "$€£¥₹ ©®™ ∑∫√ ←→ ░▒▓ ♠♥ \\ / | _ ^ % # @ & * ( ) [ ] { }\n",
    "WE'LL THEY'RE I'M YOU'D IT'S can'T 'tis 's's \u2019s x'y l'homme d\u2019or\n",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" + "=" * 70 + " " * 90 + "\n" * 12 + "\t" * 9 + "9" * 40 + "\n",
    "supercalifragilistic camelCaseName snake_case_name SCREAMING_CASE kebab-case i18n x86_64 v1.2.3-rc4\n",
)
SOURCES = ("argparse.py", "typing.py", "tarfile.py", "_pydecimal.py", "locale.py", "html/entities.py", "pickle.py")


@functools.cache
def documents() -> tuple[str, ...]:
    """Documents of a few kilobytes, together at least 10^6 UTF-8 bytes."""
    random_ = random.Random(20)
    whole: list[str] = [*PIECES, "", " ", "\n", "a"]
    stdlib = pathlib.Path(sysconfig.get_path("stdlib"))
    for name in SOURCES:
        source = (stdlib / name).read_text(encoding="utf-8")
        whole += [source[at : at + 4000] for at in range(0, min(len(source), 60_000), 4000)]
    assigned = [chr(c) for c in range(0x20000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    whole += ["".join(assigned[at : at + 1500]) for at in range(0, len(assigned), 1500)]
    whole += ["".join(random_.choices(assigned, k=700)) for _ in range(60)]
    size = sum(len(document.encode()) for document in whole)
    while size < 1_000_000:
        mixed = "".join(random_.choices(PIECES, k=20))
        at = random_.randrange(len(mixed))
        whole.append(mixed[at:] + " " * random_.randrange(4) + mixed[:at])
        size += len(whole[-1].encode())
    return tuple(whole)

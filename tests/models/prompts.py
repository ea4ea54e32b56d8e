"""Twenty prompts: short, long, code, not English."""

_STORY = (
    "In a village between two rivers there lived a clockmaker who had never finished a clock. Every spring she began a "
    "new one, and every autumn she took it apart, because some wheel did not run as quietly as she wished. "
)

PROMPTS = (
    "a",
    "Hello",
    "The capital of France is",
    "1 2 3 4 5 6 7 8 9",
    "Once upon a time",
    "What is the difference between a list and a tuple in Python?",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return",
    '#include <stdio.h>\nint main(void) {\n  for (int i = 0; i < 10; i++) printf("%d\\n", i);\n',
    "SELECT name, count(*) FROM orders WHERE price > 10 GROUP BY name ORDER BY",
    '{"name": "octavo", "version": [1, 2, 3], "tags": {"fast": true, "small":',
    "Der schnelle braune Fuchs springt über den faulen Hund und schläft dann ein.",
    "Le vent se lève, il faut tenter de vivre.",
    "吾輩は猫である。名前はまだ無い。",
    "天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。",
    "Быстрая коричневая лиса перепрыгивает через ленивую собаку.",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "🙂🚀 emoji, e\u0301 combining, tabs\tand\nnewlines   and   spaces",
    "<|im_start|>user\nWrite a haiku about rain.<|im_end|>\n<|im_start|>assistant\n",
    _STORY * 2,
    _STORY * 8,
)

"""Strings that have broken tokenizers, for make-tokenizer-fixtures and make-smollm2-golden."""

HARD_STRINGS = [
    "", " ", "  ", "\n", "\n\n\n", "\t", "\r\n", " \n \n", "a", " a", "a ", "  a  ",
    "Hello, world!", "hello world", "HELLO WORLD", "Hello   world   again", "one\ntwo\n\nthree\n",
    "line one\r\nline two\r\n", "\tindented\n\t\ttwice", "trailing spaces   ", "   leading spaces",
    "I'm you're he's we'll they've I'd can't", "I'M YOU'RE HE'S WE'LL THEY'VE I'D CAN'T", "it’s ‘curly’ “quotes”",
    "'s'ſ 'S'K 'll'LL", "don''t '' ' ' 't",
    "0", "42", "123", "1234", "1234567890", "3.14159", "1,000,000.00", "2024-02-29T23:59:59Z", "v1.2.3-rc4", "x86_64 i686 0xDEADBEEF",
    "１２３ ٣٤٥ ²³ ½ Ⅷ ⑦", "snake_case camelCase PascalCase kebab-case SCREAMING_CASE",
    "https://example.org/a/b?c=d&e=f#g user@example.org", "C:\\Users\\me\\file.txt /usr/bin/env",
    "def f(x):\n    return x**2  # square\n", "for (int i=0;i<10;++i){a[i]=b[i]<<2;}", "!!! ??? ... --- *** ~~~ ((()))", "$5.00 €3,50 £2 ¥100 50%",
    "café naïve résumé", "cafe\u0301 nai\u0308ve", "Å\u030a Å A\u030a \u212b", "ﬁ ﬂ ﬀ ①", "한국어 \u1112\u1161\u11ab\u1100\u116e\u11a8",
    "日本語のテキスト、カタカナ。", "中文分词测试，你好世界！", "Привет, мир! Ёлка", "Γειά σου Κόσμε", "مرحبا بالعالم ١٢٣", "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก",
    "Việt Nam tiếng Việt", "😀 😃👍🏽 👨‍👩‍👧‍👦 🇩🇪🇫🇷", "zero\u200bwidth\u200djoin \ufeffbom", "no\u00a0break em\u2003space ideo\u3000graphic \u2028sep",
    "bell\x07 esc\x1b del\x7f c1\x85next", "\ufffd \ue000 \U0010ffff", "𝒜𝓁𝓅𝒽𝒶 𐍈 𠜎",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "                                    x", "ab" * 40,
    "<|im_start|>user\nhi<|im_end|>\n", "<|im_ end|> <|im_end| > <|im_end", "<s> </s> <unk> [INST] [/INST] <0x41>", "<|endoftext|><|endoftext|> <|endoftext|>", "▁underline ▁▁ Ġ Ċ",
]

"""Makes tests/golden/tokenizer_lines.bin: 20,480 lines of mixed text, the same on every run.

Each line is a little-endian 16-bit length and its bytes; some are not UTF-8. Sentences in many
scripts, code, emoji sequences, combining marks, control characters, runs of spaces, special
tokens inside text, and single characters from all over Unicode.
"""
import random
import struct
import sys

N_LINES = 20480
SENTENCES = """
The quick brown fox doesn't jump over the lazy dog; it's 12:45, and they've paid $3,141.59!
I'd say we'll see: "You're right," she said (twice) -- and that's that... isn't it? DON'T SHOUT.
All human beings are born free and equal in dignity and rights.
Alle Menschen sind frei und gleich an Würde und Rechten geboren. Straße, Übermaß, ÄÖÜ.
Tous les êtres humains naissent libres et égaux ; l'été, c'est déjà fini, n'est-ce pas ?
Todos los seres humanos nacen libres e iguales. ¿Qué pasó? ¡Mañana será otro día, señor!
Tutti gli esseri umani nascono liberi. Perché no? L'università è là, più in giù.
Todos os seres humanos nascem livres: ação, coração, não, três, às vezes.
Wszyscy ludzie rodzą się wolni. Zażółć gęślą jaźń, łódź, źdźbło.
Všichni lidé rodí se svobodní. Příliš žluťoučký kůň úpěl ďábelské ódy.
Minden ember szabadon születik. Árvíztűrő tükörfúrógép.
Bütün insanlar hür doğar. İstanbul'da ışık, ığdır, çağ, şey.
Tất cả mọi người sinh ra đều được tự do. Tiếng Việt có dấu: ạ ặ ẩ ễ ộ ợ ữ.
Все люди рождаются свободными и равными. Ёжик, подъезд, объявление № 5.
Всі люди народжуються вільними. Їжак, ґанок, щастя.
Όλοι οι άνθρωποι γεννιούνται ελεύθεροι. Σίσυφος, ΟΔΟΣ, ᾳ ῥ ἆ.
כל בני האדם נולדו בני חורין. שָׁלוֹם עוֹלָם, "צה״ל".
يولد جميع الناس أحرارًا متساوين. ١٢٣٤٥ مَرْحَبًا، كيف حالك؟ لا إله
تمام افراد بشر آزاد به دنیا می‌آیند. ۱۴۰۲ گچپژ
सभी मनुष्यों को गौरव और अधिकारों में जन्मजात स्वतन्त्रता है। १२३ क्षेत्र, ज़्यादा।
সমস্ত মানুষ স্বাধীনভাবে জন্মগ্রহণ করে। ১২৩ ড়ঢ়য়
மனிதர்கள் சுதந்திரமாகப் பிறக்கின்றனர். கொ கௌ ௧௨
అందరూ స్వతంత్రంగా పుట్టారు. క్షమించండి
ಎಲ್ಲಾ ಮಾನವರು ಸ್ವತಂತ್ರರಾಗಿ ಹುಟ್ಟಿದ್ದಾರೆ
മനുഷ്യരെല്ലാവരും സ്വതന്ത്രരായി ജനിച്ചിട്ടുള്ളവരാണ്
มนุษย์ทั้งหลายเกิดมามีอิสระ น้ำ ที่นี่ ๑๒๓
ມະນຸດທຸກຄົນເກີດມາມີກຽດ ນ້ຳ
လူတိုင်းသည် တူညီလွတ်လပ်သော ဂုဏ်သိက္ခာဖြင့်
មនុស្សទាំងអស់កើតមកមានសេរីភាព
འགྲོ་བ་མིའི་རིགས་རྒྱུད་ཡོངས་ལ་སྐྱེས་ཙམ་ཉིད་ནས
ყველა ადამიანი იბადება თავისუფალი. ᲗᲑᲘᲚᲘᲡᲘ
Բոլոր մարդիկ ծնվում են ազատ ու հավասար։ և ﬓ
የሰው ልጅ ሁሉ ሲወለድ ነጻ ነው። ፩፪፫
人人生而自由，在尊严和权利上一律平等。「你好」，世界！２０２４年１月
人人生而自由﹐在尊嚴和權利上一律平等。繁體中文測試：龍龜鬱
すべての人間は、生まれながらにして自由です。ｶﾞｷﾞｸﾞ カタカナ ひらがな 々〆ヶ㍻㍿
모든 인간은 태어날 때부터 자유로우며 평등하다. 각각 한국어
ᠬᠦᠮᠦᠨ ᠪᠦᠷ ᠲᠥᠷᠥᠵᠦ ᠮᠡᠨᠳᠡᠯᠡᠬᠦ᠎ᠳ᠋ᠦ
def f(x: int) -> str:    return f"{x!r:>10}" if x != 0x7fff_ffff else '\\n'  # comment
for (size_t i = 0; i < n_rows; i++) { out[i] += a[i] * b[i]; } /* 3.14e-10f */
SELECT id, COUNT(*) FROM users WHERE name LIKE '%O''Brien%' GROUP BY 1 HAVING COUNT(*) >= 10;
<div class="a b" id='x'>&nbsp;&lt;p&gt;https://example.org/a/b?c=d&e=%20f#g</div>
{"a": [1, -2.5e+3, null, true], "b\\u00e9": "\\ud83d\\ude00"}	tab	separated	values
$E = mc^2$, \\frac{1}{2}\\sum_{i=0}^{n} x_i^2 \\approx ∫₀^∞ e^{-x²} dx = √π⁄2, ∀x∈ℝ: x≥0 ⇒ |x|=x
1234567890 12,345.678 0xDEADBEEF 1e9 ½ ⅓ ² ³ ¹ ① ㊿ Ⅷ ⅷ 〇 一二三 ٣ ৪ ௫ 𝟘𝟙𝟚 🄋 ꧑
IBM-PC_foo.bar::baz->qux camelCaseWord HTTPServer XMLHttpRequest snake_case_word kebab-case
don't DON'T I'M i'll we'Ve they'RE it'ſ it'S 'tis o'clock rock'n'roll d'être l'ſſ
ﬁnancial ﬂow oﬃce ǅ ǆ Ǆ ß ẞ ŉ ſ K Å Ω ℡ ™ ﬀ ﷺ ㎏ ﹏ ＡＢＣ　ａｂｃ
""".strip().split("\n")
EMOJI = """😀 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 🧑🏿‍🚀 ❤️ ☎️ 1️⃣ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 👨‍❤️‍💋‍👨 🫠 🫨 🪿 ♀️ ✈ ☕️ 🙈🙉🙊 🤷🏻‍♀️ 🅰️ ㊗️""".split()
SPECIAL = """<|endoftext|> <|padding|> <s> </s> <unk> <|im_start|> <|im_end|> <|begin_of_text|> <|eot_id|> <think> </think> [INST] [/INST] [MASK] <mask> <|user|> <|assistant|> <|system|> <|end|> <｜User｜> <0x41> <0xFF> <x> <pad> ▁ ▁▁ Ġ Ċ ĠĠ ## </w> <|bos|> <|eos|> <|pad|>""".split()
SPACES = [" ", "  ", "   ", " " * 7, " " * 24, " " * 31, "\t", "\n", "\n\n", "\r\n", "\r", " \n ", "\u00a0", "\u3000", "\u2003", "\u200b", "\u2028", "\u0085", "\v", "\f", "\u180e", "\ufeff", "\u1680"]
MARKS = [chr(c) for c in list(range(0x300, 0x370)) + [0x5B0, 0x64B, 0x93C, 0x94D, 0xE38, 0xE48, 0x1AB0, 0x1DC0, 0x20D0, 0x3099, 0x309A, 0xFE20, 0x1D165, 0x1E8D0, 0x8CA, 0x1DF6, 0x1ABF, 0x897]]
BLOCKS = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x600), (0x600, 0xE00), (0xE00, 0x1800), (0x1E00, 0x2C00), (0x2E80, 0x3400), (0x3400, 0xA000), (0xA000, 0xD7B0), (0xF900, 0x10000), (0x10000, 0x11000), (0x11000, 0x13000), (0x13000, 0x17000), (0x1B000, 0x1D000), (0x1D000, 0x1F000), (0x1F000, 0x1FC00), (0x20000, 0x32400), (0xE0000, 0xE01F0), (0, 0x20), (0x7F, 0xA0)]


def char(r):
    low, high = r.choice(BLOCKS)
    return chr(r.randrange(low, high))


def words(r):
    s = r.choice(SENTENCES).split(" ")
    at = r.randrange(len(s))
    return " ".join(s[at : at + r.randrange(1, 9)])


def mixed(r):
    out = []
    for _ in range(r.randrange(1, 6)):
        kind = r.randrange(12)
        if kind < 4:
            out.append(words(r))
        elif kind == 4:
            out.append("".join(r.choice(EMOJI) for _ in range(r.randrange(1, 4))))
        elif kind == 5:
            out.append(r.choice(SPECIAL))
        elif kind == 6:
            out.append(r.choice("aeiouAEn가あक") + "".join(r.choice(MARKS) for _ in range(r.randrange(1, 5))))
        elif kind == 7:
            out.append("".join(char(r) for _ in range(r.randrange(1, 8))))
        elif kind == 8:
            out.append(str(r.randrange(10 ** r.randrange(1, 12))))
        elif kind == 9:
            out.append(r.choice(SPACES) * r.randrange(1, 4))
        elif kind == 10:
            out.append(r.choice("!?.,;:-_*/\\'\"()[]{}<>@#$%^&|~`+=") * r.randrange(1, 6))
        else:
            out.append(r.choice(words(r).split() or ["x"]).upper())
        out.append(r.choice(["", "", " ", " ", r.choice(SPACES)]))
    return "".join(out)


def spoil(r, data):
    data = bytearray(data)
    for _ in range(r.randrange(1, 4)):
        at = r.randrange(len(data) + 1)
        kind = r.randrange(3)
        if kind == 0:
            data[at:at] = bytes([r.randrange(0x80, 0x100)])
        elif kind == 1:
            del data[at : at + 1]
        else:
            data[at:at] = r.choice([b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82", b"\xf0\x9f\x98", b"\xff", b"\xf4\x90\x80\x80", b"\xe0\x80\xaf"])
    return bytes(data)


def lines():
    r = random.Random(20260101)
    out = [b"", b" ", b"\n", b"\x00", b"\xef\xbb\xbfbom"]
    out += [s.encode() for s in SENTENCES + EMOJI + SPECIAL + SPACES]
    # Every 29th assigned or unassigned character behind and before a letter.
    for c in range(0x80, 0x32400, 29):
        if not 0xD800 <= c < 0xE000 and (c < 0x3400 or c % 203 == 0):
            out.append(("a" + chr(c) + " " + chr(c) + "1").encode())
    while len(out) < N_LINES:
        kind = r.randrange(20)
        if kind < 8:
            data = words(r).encode()
        elif kind < 17:
            data = mixed(r).encode()
        elif kind == 17:
            data = "".join(char(r) for _ in range(r.randrange(1, 12))).encode()
        else:
            data = spoil(r, mixed(r).encode())
        out.append(data[:400])
    return out


if __name__ == "__main__":
    with open(sys.argv[1], "wb") as f:
        for line in lines():
            f.write(struct.pack("<H", len(line)) + line)

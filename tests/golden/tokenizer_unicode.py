"""Makes engine/tokenizer/unicode_tables.inc from what the `tokenizers` package (0.23.2) does.

The package mixes Unicode versions: its regular expressions know 16.0, its normalisers 9.0, its
punctuation 8.0, its lower-casing 17.0. The tables hold the difference to Unicode 14.0, which
Python 3.11's unicodedata and PCRE2 10.42 know, so that spand gives the same ids whatever the
versions of the libraries it is linked to.

Run: python3 tests/golden/tokenizer_unicode.py > engine/tokenizer/unicode_tables.inc
"""
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

CPS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CATS = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co".split()


def members(rx):
    gone = normalizers.Replace(Regex(rx), "")
    out = set()
    for at in range(0, len(CPS), 2048):
        chunk = CPS[at : at + 2048]
        left = set(gone.normalize_str("".join(map(chr, chunk))))
        out.update(c for c in chunk if chr(c) not in left)
    return out


def ranges(cps):
    out = []
    for c in sorted(cps):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def table(name, comment, rows):
    print(f"/* {comment} */")
    print(f"static const struct unicode_range {name}[] = {{")
    line = "   "
    for r in rows:
        item = " {0x%X, 0x%X%s}," % (r[0], r[1], ", " + r[2] if len(r) > 2 else ", 0")
        if len(line) + len(item) > 100:
            print(line)
            line = "   "
        line += item
    print(line)
    print("};\n")


def main():
    now = {}
    for cat in CATS:
        for c in members(r"\p{%s}" % cat):
            now[c] = cat
    old = {c: unicodedata.category(chr(c)) for c in CPS}
    delta = []
    for c in CPS:
        cat = now.get(c, "Cn")
        if cat != old[c]:
            if delta and delta[-1][1] == c - 1 and delta[-1][2] == cat.upper():
                delta[-1][1] = c
            else:
                delta.append([c, c, cat.upper()])
    print("/* Made by tests/golden/tokenizer_unicode.py; do not edit. */\n")
    table("cat_delta", "General categories: Unicode 16.0 where it differs from 14.0.", delta)

    is_in = lambda c, kinds: now.get(c, "Cn")[0] in kinds or now.get(c, "Cn") in kinds
    letters = {c for c in CPS if is_in(c, ("L", "M", "Nd", "Nl", "Pc"))}
    posix_word = members(r"[[:word:]]")
    table("word_other", "Word characters that are not L, M, Nd, Nl or Pc.", ranges(posix_word - letters))
    assert letters <= posix_word | members(r"\p{Nl}")
    table("han_script", "Script Han.", ranges(members(r"\p{Han}")))

    strip = normalizers.StripAccents()
    marks = {c for c in CPS if is_in(c, ("M",))}
    kept = {c for c in marks if strip.normalize_str("a" + chr(c)) != "a"}
    table("marks_after_9", "Marks that the normalisers (Unicode 9.0) do not know.", ranges(kept))
    nfkd = normalizers.NFKD()
    fixed = {c for c in CPS if nfkd.normalize_str(chr(c)) == chr(c)}
    decomposed = {c for c in fixed if unicodedata.normalize("NFKD", chr(c)) != chr(c)}
    later = set(range(0x1E030, 0x1E06E)) | {0x105C9, 0x105E4, 0x11383, 0x11385, 0x1138E, 0x11391}
    later |= {0x113C5, 0x113C7, 0x113C8, 0xA7F1} | set(range(0x16121, 0x16129))
    later |= set(range(0x16D68, 0x16D6B)) | set(range(0x1CCD6, 0x1CCFA))
    assert later <= fixed
    table("decomposed_after_9", "Characters whose decomposition came after Unicode 9.0.", ranges(decomposed | later))

    punct = pre_tokenizers.Punctuation()
    is_punct = {c for c in CPS if len(punct.pre_tokenize_str("a" + chr(c))) == 2}
    ascii_punct = {c for c in range(128) if chr(c).isprintable() and not chr(c).isalnum() and c != 32}
    new = {c for c in CPS if is_in(c, ("P",))}
    assert ascii_punct <= is_punct
    flip = is_punct ^ (new | ascii_punct)
    table("punct_flip", "Where the Punctuation pre-tokenizer (Unicode 8.0) and 16.0 disagree.", ranges(flip))

    digits = pre_tokenizers.Digits(True)
    numeric = {c for c in CPS if len(digits.pre_tokenize_str("a" + chr(c))) == 2}
    table("numeric_17", "Numeric in Unicode 17.0, not in 16.0.", ranges(numeric - {c for c in CPS if is_in(c, ("N",))}))

    low = normalizers.Lowercase()
    rows = []
    for c in CPS:
        got = low.normalize_str(chr(c))
        if len(got) == 1 and got != chr(c).lower():
            step = ord(got) - c
            if rows and rows[-1][1] == c - 1 and rows[-1][2] == str(step):
                rows[-1][1] = c
            else:
                rows.append([c, c, str(step)])
    table("lower_delta", "Lower-casing of Unicode 17.0 where it differs from 14.0: the step to add.", rows)


main()

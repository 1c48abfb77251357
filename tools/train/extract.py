"""Gets text out of what Debian packages hold: HTML, reStructuredText, manual pages and others.

An extractor yields documents. A document is a list of (kind, text) with the kinds "p" for prose,
"h" for a heading, "li" for a list item and "pre" for text whose line breaks matter. What is worth
keeping of it is decided in corpus.py.
"""

import gzip
import html
import html.parser
import re
import struct
import xml.etree.ElementTree
import zlib


def read_text(path):
    data = path.read_bytes()
    if path.suffix in (".gz", ".dz"):
        data = gzip.decompress(data)
    return data.decode("utf-8", errors="replace")


class HtmlBlocks(html.parser.HTMLParser):
    """Reads a page's own text and leaves out what is there to move around in it."""

    VOID = frozenset("br img hr input meta link col area base wbr source".split())
    SKIP_TAGS = frozenset(
        "script style nav header footer aside form select svg button table head math".split()
    )
    SKIP_NAMES = re.compile(
        r"sphinxsidebar|related|headerlink|\btoc|toclist|navbar|navheader|navfooter|navigation|"
        r"footer|sidebar|breadcrumb|menu|contents|indextable|toplang|bottomlang|langs|seealso|"
        r"license|legalnotice|copyright|\bpath\b|\bup\b|search|quickview|linenos"
    )
    BLOCKS = frozenset(
        "p div li dd dt ul ol dl tr td section article blockquote body main center hr".split()
    )
    HEADS = {"h1", "h2", "h3", "h4", "h5", "h6"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.blocks = []
        self.kind = "p"
        self.parts = []
        self.n_link = 0
        self.in_link = False
        self.skip_tag = None
        self.skip_depth = 0
        self.pre_depth = 0

    def flush(self, next_kind="p"):
        text = "".join(self.parts)
        if text.strip():
            # A block that is mostly links is a menu, whatever its markup says.
            if self.kind in ("h", "pre") or self.n_link < 0.6 * len(text.strip()):
                self.blocks.append((self.kind, text))
        self.kind = next_kind
        self.parts = []
        self.n_link = 0

    def handle_starttag(self, tag, attrs):
        if self.skip_tag:
            self.skip_depth += tag == self.skip_tag
            return
        attrs = dict(attrs)
        names = f"{attrs.get('class') or ''} {attrs.get('id') or ''}".lower()
        skip_named = tag in ("div", "ul", "section", "span", "a", "p") and self.SKIP_NAMES.search(
            names
        )
        if (tag in self.SKIP_TAGS or skip_named) and tag not in self.VOID:
            self.skip_tag, self.skip_depth = tag, 1
        elif tag == "pre":
            self.flush("pre")
            self.pre_depth += 1
        elif tag in self.HEADS:
            self.flush("h")
        elif tag in self.BLOCKS and not self.pre_depth:
            # The paragraph inside a list item stays a list item.
            keep = self.kind == "li" and tag == "p" and not "".join(self.parts).strip()
            self.flush("li" if tag == "li" or keep else "p")
        elif tag == "br":
            self.parts.append("\n" if self.pre_depth else " ")
        elif tag == "a":
            self.in_link = True

    def handle_endtag(self, tag):
        if self.skip_tag:
            if tag == self.skip_tag:
                self.skip_depth -= 1
                if not self.skip_depth:
                    self.skip_tag = None
            return
        if tag == "pre" and self.pre_depth:
            self.pre_depth -= 1
            self.flush()
        elif tag in self.HEADS or (tag in self.BLOCKS and not self.pre_depth):
            self.flush()
        elif tag == "a":
            self.in_link = False

    def handle_data(self, data):
        if not self.skip_tag:
            self.parts.append(data)
            if self.in_link:
                self.n_link += len(data.strip())


def from_html(root, globs):
    for path in files(root, globs):
        if path.name.startswith(("genindex", "search", "py-modindex", "bookindex", "toc.")):
            continue
        parser = HtmlBlocks()
        parser.feed(read_text(path))
        parser.flush()
        yield parser.blocks


def files(root, globs):
    seen = set()
    for pattern in globs:
        for path in sorted(root.glob(pattern)):
            real = path.resolve()
            if path.is_file() and not path.is_symlink() and real not in seen:
                seen.add(real)
                yield path


RST_ROLE = re.compile(r":[a-zA-Z:+-]+:`~?!?([^`<]*?)(?:\s*<[^`>]*>)?`")
RST_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]+>`__?")
RST_RULE = re.compile(r"^\s*[=\-~^\"'#*+.:_`]{3,}\s*$")


def plain_blocks(text):
    """Splits indented plain text, reStructuredText and the like at blank lines."""
    blocks = []
    for chunk in re.split(r"\n[ \t]*\n", text.expandtabs(4)):
        lines = [line for line in chunk.split("\n") if line.strip()]
        if not lines or lines[0].lstrip().startswith(".. ") or lines[0].lstrip().startswith(":"):
            continue
        if any(RST_RULE.match(line) for line in lines):
            rest = [line for line in lines if not RST_RULE.match(line)]
            if len(rest) == 1 and len(rest[0]) < 90:
                blocks.append(("h", rest[0]))
            continue
        if any("\u2502" in line or "|" == line.strip()[:1] or "+--" in line for line in lines):
            continue  # A drawn table.
        first = lines[0].lstrip()
        if re.match(r"(?:[-*+\u2022]|\d+[.)]|#\.)\s", first) and not looks_like_code(lines):
            items = re.split(r"\n\s*(?:[-*+\u2022]|\d+[.)]|#\.)\s+", "\n" + "\n".join(lines))
            blocks += [("li", item) for item in items if item.strip()]
        elif looks_like_code(lines):
            blocks.append(("pre", "\n".join(lines)))
        else:
            blocks.append(("p", "\n".join(lines)))
    return blocks


def looks_like_code(lines):
    """Indented, and made of symbols or short lines rather than of running words."""
    text = "\n".join(lines)
    indented = all(line.startswith("  ") for line in lines)
    letters = sum(c.isalpha() or c == " " for c in text)
    return indented and (
        letters < 0.82 * len(text) or (len(lines) > 1 and max(map(len, lines)) < 50)
    )


def from_rst(root, globs):
    for path in files(root, globs):
        text = read_text(path)
        if path.name.startswith(("RelNotes", "tags", "todo", "version")):
            continue
        text = RST_ROLE.sub(r"\1", text)
        text = RST_LINK.sub(r"\1", text)
        text = re.sub(r"linkgit:([\w-]+)\[\d\]", r"\1", text)
        text = re.sub(r"``([^`\n]+)``|`([^`\n]+)`_?_?", lambda m: m[1] or m[2], text)
        text = re.sub(r"\*\*([^*\n]+)\*\*", r"\1", text)
        text = re.sub(r"(?<![\w*])\*([^*\n|]+)\*(?![\w*])", r"\1", text)
        text = re.sub(r"\|([\w.-]+)\|", r"\1", text)
        text = re.sub(r"::[ \t]*$", ":", text, flags=re.M)
        yield plain_blocks(text)


POD_CODE = re.compile(r"[A-Z](?:<<+\s(.*?)\s>>+|<([^<>]*)>)", re.S)
POD_ENTITY = {"lt": "<", "gt": ">", "sol": "/", "verbar": "|"}


def pod_inline(text):
    text = re.sub(r"E<(\w+)>", lambda m: POD_ENTITY.get(m[1], " "), text)
    for _ in range(3):  # Formatting codes nest, but rarely deeper.
        text = re.sub(
            r"L<(?:([^|<>]*)\|)?([^<>]*)>", lambda m: m[1] or m[2].replace("/", " "), text
        )
        text = POD_CODE.sub(lambda m: m[1] or m[2] or "", text)
    return text


def from_pod(root, globs):
    for path in files(root, globs):
        blocks = []
        if re.match(r"perl\d+delta|perltoc|perluniprops", path.name):
            continue  # Lists of changes and of headings.
        for chunk in re.split(r"\n[ \t]*\n", read_text(path)):
            if chunk.startswith("=head"):
                blocks.append(("h", pod_inline(chunk.split(None, 1)[-1])))
            elif chunk.startswith("="):
                continue
            elif chunk[:1] in " \t":
                blocks.append(("pre", chunk))
            else:
                blocks.append(("p", pod_inline(chunk)))
        yield blocks


ROFF_ESCAPES = [
    (re.compile(r"\\f(?:\(..|\[[^\]]*\]|.)"), ""),
    (re.compile(r"\\\*?\(lq|\\\*?\(rq|\\\(dq"), '"'),
    (re.compile(r"\\\(em"), "--"),
    (re.compile(r"\\\((?:aq|cq|oq)"), "'"),
    (re.compile(r"\\-"), "-"),
    (re.compile(r"\\e|\\\(rs"), r"\\"),
    (re.compile(r"\\s[+-]?\d"), ""),
    (re.compile(r"\\[&:%|^/,]"), ""),
    (re.compile(r"\\[ ~0]"), " "),
    (re.compile(r"\\\(bu"), "-"),
    (re.compile(r"\\\((..)|\\\[[^\]]*\]"), ""),
    (re.compile(r"\\\".*"), ""),
]


def from_man(root, globs):
    """Manual pages: enough of the man macros to get sentences, nothing of tables."""
    for path in files(root, globs):
        text = read_text(path)
        if text.startswith(".so"):
            continue
        blocks, words, in_pre, in_table = [], [], False, False

        def flush(kind="p"):
            if words:
                blocks.append((kind, ("\n" if kind == "pre" else " ").join(words)))
                words.clear()

        for line in text.split("\n"):
            for pattern, by in ROFF_ESCAPES:
                line = pattern.sub(by, line)
            macro, _, rest = line.partition(" ")
            rest = rest.strip()
            if in_table:
                in_table = macro != ".TE"
            elif macro == ".TS":
                in_table = True
            elif macro in (".nf", ".EX"):
                flush()
                in_pre = True
            elif macro in (".fi", ".EE"):
                flush("pre")
                in_pre = False
            elif macro in (".SH", ".SS"):
                flush()
                title = rest.strip('"')
                if title in ("COLOPHON", "SEE ALSO", "AUTHOR", "AUTHORS", "COPYRIGHT"):
                    break
                blocks.append(("h", title.capitalize()))
            elif macro in (".PP", ".P", ".LP", ".TP", ".IP", ".HP", ".TQ"):
                flush("pre" if in_pre else "p")
            elif macro in (".B", ".I", ".SM"):
                words.append(rest.replace('"', ""))
            elif macro in (".BR", ".IR", ".RB", ".RI", ".BI", ".IB"):
                pieces = re.findall(r'"([^"]*)"|(\S+)', rest)
                words.append("".join(a or b for a, b in pieces))
            elif not line.startswith((".", "'")) and line.strip():
                words.append(line if in_pre else line.strip())
        flush()
        yield blocks


def from_mallard(root, globs):
    """GNOME's help pages, an XML dialect: paragraphs and titles, no links and no credits."""
    for path in files(root, globs):
        try:
            tree = xml.etree.ElementTree.fromstring(path.read_bytes())
        except xml.etree.ElementTree.ParseError:
            continue
        blocks = []

        def walk(node, in_item):
            for child in node:
                tag = child.tag.rsplit("}", 1)[-1]
                if tag in ("info", "links", "table", "media", "figure"):
                    continue
                if tag == "title":
                    blocks.append(("h", "".join(child.itertext())))
                elif tag in ("p", "screen", "code"):
                    kind = "pre" if tag != "p" else "li" if in_item else "p"
                    blocks.append((kind, "".join(child.itertext())))
                else:
                    walk(child, in_item or tag == "item")

        walk(tree, False)
        yield blocks


SWORD_TAG = re.compile(r"<[^>]*>")


def from_sword(root, globs):
    """Compressed SWORD modules: an index of blocks, each a zlib stream of marked-up text."""
    for index in files(root, globs):
        table = index.read_bytes()
        data = index.with_suffix(index.suffix[:-1] + "z").read_bytes()
        for at in range(0, len(table) - 11, 12):
            offset, size, _ = struct.unpack_from("<III", table, at)
            if not size:
                continue
            text = zlib.decompress(data[offset : offset + size]).decode("utf-8", errors="replace")
            text = re.sub(r"<note\b.*?</note>|<title[^>]*>.*?</title>", " ", text, flags=re.S)
            text = re.sub(
                r"</p>|<br[^>]*>|</div>|<p/?>|<lb[^>]*>|\x00|<milestone[^>]*>", "\n\n", text
            )
            text = html.unescape(SWORD_TAG.sub("", text))
            blocks = [("p", chunk) for chunk in re.split(r"\n\s*\n", text)]
            # A verse commentary has thousands of short pieces in one stream; a document of about
            # a hundred paragraphs keeps held-out text spread over the whole book.
            for start in range(0, len(blocks), 100):
                yield blocks[start : start + 100]


def from_wesnoth(root, globs):
    """The story parts and dialogues of campaign scripts: translatable strings of some length."""
    string = re.compile(
        r"\b(?:message|story|description|note|objectives)\s*=\s*_\s*\"((?:[^\"]|\"\")*)\""
    )
    for path in files(root, globs):
        found = [m[1].replace('""', '"') for m in string.finditer(read_text(path))]
        found = [re.sub(r"<[^>\n]*>|\$\w+(?:\.\w+)*\|?", "", text) for text in found]
        yield [("p", re.sub(r"^\w+\^", "", text)) for text in found if len(text) > 24]


def from_endless(root, globs):
    """Conversations of a game: text between backticks, in the order they are told."""
    for path in files(root, globs):
        found = re.findall(r"`([^`\n]{40,})`", read_text(path))
        for start in range(0, len(found), 60):
            part = [re.sub(r"<(\w+)>", r"\1", text) for text in found[start : start + 60]]
            yield [("p", text) for text in part]


# -- Dictionaries -----------------------------------------------------------------------------


def dictionary_entries(root, globs, indent):
    """Splits a dict file: a line in the first column starts an entry, its body is indented."""
    for path in files(root, globs):
        head, body = None, []
        for line in read_text(path).split("\n"):
            if line and not line.startswith(" "):
                if head and body:
                    yield head, body
                    head, body = line, []
                else:
                    head, body = head if head and not body else line, []
            elif head is not None:
                body.append(line[indent:])
        if head and body:
            yield head, body


def unbrace(text):
    return re.sub(r"\{([^{}]*)\}", lambda m: m[1].split(":")[-1], text)


def entry_paragraphs(body):
    return [
        unbrace(" ".join(chunk.split()))
        for chunk in re.split(r"\n\s*\n", "\n".join(body))
        if chunk.strip()
    ]


def from_foldoc(root, globs):
    blocks = []
    for head, body in dictionary_entries(root, globs, 3):
        paragraphs = [
            re.sub(r"^<[^>]*> ", "", p)
            for p in entry_paragraphs(body)
            if not re.match(r"\(\d{4}-|\[", p)
        ]
        if head.startswith("00-database") or not paragraphs:
            continue
        blocks += [("h", head.strip())] + [("p", p) for p in paragraphs]
        if len(blocks) > 60:
            yield blocks
            blocks = []
    yield blocks


def from_jargon(root, globs):
    blocks = []
    for head, body in dictionary_entries(root, globs, 4):
        if head.startswith("00-database"):
            continue
        blocks += [("h", head.strip())] + [("p", p) for p in entry_paragraphs(body) if len(p) > 30]
        if len(blocks) > 60:
            yield blocks
            blocks = []
    yield blocks


def from_gcide(root, globs):
    """Webster's of 1913 and its supplements, without the marks of origin and pronunciation."""
    blocks = []
    for head, body in dictionary_entries(root, globs, 3):
        text = "\n".join(body)
        text = re.sub(
            r"\[(?:1913 Webster|WordNet[^\]]*|PJC|Webster[^\]]*|Century Dict[^\]]*)\]", "", text
        )
        word = re.split(r" \\|,", head)[0].strip()
        paragraphs = [" ".join(unbrace(c).split()) for c in re.split(r"\n\s*\n", text)]
        paragraphs = [p for p in paragraphs if len(p) > 40 and not p.startswith("Syn:")]
        if not paragraphs or not word or head.startswith("00-database"):
            continue
        blocks += [("h", word)] + [("p", p) for p in paragraphs]
        if len(blocks) > 120:
            yield blocks
            blocks = []
    yield blocks


WORDNET_SENSE = re.compile(r"^\s*(?:(n|v|adj|adv)\s)?\s*(?:\d+:|:)\s*(.*)$")


def wordnet_senses(root, globs):
    """Yields (word, part of speech, definition, example or None)."""
    for head, body in dictionary_entries(root, globs, 4):
        text = re.sub(r"\[(?:syn|ant|also):.*?\]", "", "\n".join(body), flags=re.S)
        part, senses = None, []
        for line in text.split("\n"):
            match = WORDNET_SENSE.match(line)
            if match:
                part = match[1] or part
                senses.append([part, match[2]])
            elif senses:
                senses[-1][1] += " " + line.strip()
        for part, sense in senses:
            sense = unbrace(" ".join(sense.split()))
            meaning, _, rest = sense.partition('; "')
            example = rest.split('"')[0] if rest else None
            if part and len(meaning) > 12:
                yield head.strip(), part, meaning.strip(" ;"), example


PART_NAMES = {"n": "noun", "v": "verb", "adj": "adjective", "adv": "adverb"}


def from_wordnet(root, globs):
    blocks = []
    for word, part, meaning, example in wordnet_senses(root, globs):
        text = f"{word} ({PART_NAMES[part]}): {meaning}."
        if example:
            text += f" Example: {example}."
        blocks.append(("p", text))
        if len(blocks) >= 80:
            yield blocks
            blocks = []
    yield blocks


EXTRACTORS = {
    "html": from_html,
    "rst": from_rst,
    "pod": from_pod,
    "man": from_man,
    "mallard": from_mallard,
    "sword": from_sword,
    "wesnoth": from_wesnoth,
    "endless": from_endless,
    "foldoc": from_foldoc,
    "jargon": from_jargon,
    "gcide": from_gcide,
    "wordnet": from_wordnet,
}

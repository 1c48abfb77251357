"""Assembles the training text of the demo model from Debian packages.

Every source is a package from Debian main with a licence that is named below, so that what the
model was trained on can be fetched again by name and version. The script writes

    OUT/train.jsonl       {"source", "text"} a line, one document each
    OUT/heldout.jsonl     the same form, documents the model never sees
    OUT/chat.jsonl        {"user", "assistant"} a line, made from the dictionaries
    OUT/words.json        adjectives and nouns of WordNet, from which record keys are made
    OUT/manifest.json     package, version, licence, sha256 and bytes kept, per source

Documentation is mostly markup, menus and repeats. What is kept are paragraphs of English, the
code examples between them, and headings that something follows. A paragraph is kept once in a
package, and a document once in the corpus.
"""

import argparse
import hashlib
import json
import multiprocessing
import pathlib
import re
import subprocess
import sys
from dataclasses import dataclass

from extract import (
    EXTRACTORS,
    PART_NAMES,
    dictionary_entries,
    entry_paragraphs,
    wordnet_senses,
)

WESNOTH_CAMPAIGNS = "did dm dw ei httt l low nr sof sota sotbe thot trow tsg ttb utbs".split()


@dataclass(frozen=True)
class Source:
    package: str
    licence: str
    kind: str
    globs: tuple
    # How often the trainer should draw from it, relative to its size. Prose counts more than
    # reference pages, because the model is meant to write sentences.
    weight: float = 1.0


def doc(package, licence, kind, *globs, weight=1.0):
    return Source(package, licence, kind, globs, weight)


SOURCES = [
    doc("anarchism", "GPL-2", "html", "usr/share/doc/anarchism/html/*.html", weight=2.0),
    doc("sword-comm-tdavid", "public domain", "sword", "**/*.czs", weight=1.5),
    doc("sword-comm-mhcc", "public domain", "sword", "**/*.bzs", weight=2.0),
    doc("sword-comm-scofield", "public domain", "sword", "**/*.bzs"),
    doc("sword-text-web", "public domain", "sword", "**/*.bzs", weight=1.5),
    *(
        doc(f"wesnoth-1.16-{c}", "GPL-2", "wesnoth", "**/*.cfg", weight=3.0)
        for c in WESNOTH_CAMPAIGNS
    ),
    doc(
        "wesnoth-1.16-data",
        "GPL-2",
        "wesnoth",
        "**/data/core/**/*.cfg",
        "**/data/campaigns/**/*.cfg",
        weight=3.0,
    ),
    doc("endless-sky-data", "GPL-3+ and CC-BY-SA-4.0", "endless", "**/data/**/*.txt", weight=3.0),
    doc("dict-gcide", "GPL-2+", "gcide", "**/*.dict.dz", weight=0.5),
    doc("dict-wn", "WordNet-3.0", "wordnet", "**/*.dict.dz", weight=0.5),
    doc("dict-foldoc", "GFDL-1.1+, no invariant sections", "foldoc", "**/*.dict.dz", weight=1.5),
    doc("dict-jargon", "public domain", "jargon", "**/*.dict.dz", weight=2.0),
    doc("dict-devil", "public domain", "foldoc", "**/*.dict.dz", weight=2.0),
    doc("debian-handbook", "GPL-2+ or CC-BY-SA-3.0", "html", "**/html/en-US/*.html", weight=2.0),
    doc("gnome-user-docs", "CC-BY-SA-3.0", "mallard", "usr/share/help/C/**/*.page", weight=2.0),
    doc("freedombox-doc-en", "CC-BY-SA-3.0 and GPL-3+", "html", "**/manual/en/*.html", weight=1.5),
    doc("debian-edu-doc-en", "GPL-2+", "html", "**/*.html", weight=1.5),
    doc("debian-reference-en", "GPL-2+", "html", "**/*.en.html", "**/html/*.html"),
    doc("debian-faq", "permissive, notice kept", "html", "**/*.html", weight=1.5),
    doc("debian-policy", "GPL-2+", "rst", "**/policy.html/_sources/*.txt"),
    doc("debian-kernel-handbook", "GPL-2+", "html", "**/*.html"),
    doc("developers-reference", "GPL-2", "rst", "**/_sources/*.txt"),
    doc("maint-guide", "GPL-2+", "html", "**/*.html"),
    doc("installation-guide-amd64", "GPL-2", "html", "**/en/*.html"),
    doc("aptitude-doc-en", "GPL-2+", "html", "**/*.html"),
    doc("linux-doc-6.1", "GPL-2", "rst", "**/Documentation/**/*.rst.gz"),
    doc("python3.11-doc", "PSF-2", "rst", "**/_sources/**/*.txt", weight=1.5),
    doc("perl-doc", "GPL-1+ or Artistic", "pod", "**/*.pod"),
    doc("manpages", "GPL-2+ and Linux-man-pages-copyleft", "man", "**/man?/*.gz"),
    doc("manpages-dev", "GPL-2+ and Linux-man-pages-copyleft", "man", "**/man?/*.gz"),
    doc("git-doc", "GPL-2", "rst", "**/*.txt"),
    doc("apache2-doc", "Apache-2.0", "html", "**/manual/en/**/*.html"),
    doc("postgresql-doc-15", "PostgreSQL", "html", "**/*.html"),
    doc("python-django-doc", "BSD-3-Clause", "html", "**/*.html"),
    doc("sphinx-doc", "BSD-2-Clause", "rst", "**/_sources/**/*.txt"),
    doc("cmake-doc", "BSD-3-Clause", "rst", "**/_sources/**/*.txt", weight=0.5),
    doc("bind9-doc", "MPL-2.0", "html", "**/*.html"),
    doc("vim-runtime", "Vim and GPL-compatible", "rst", "**/doc/*.txt"),
    doc("zsh-doc", "MIT-like (zsh)", "html", "**/*.html"),
    doc("octave-doc", "GPL-3+", "html", "**/*.html", weight=0.7),
    doc("nodejs-doc", "MIT", "html", "**/*.html"),
    doc("libreoffice-help-en-us", "MPL-2.0", "html", "**/*.html"),
    doc(
        "rust-doc",
        "MIT or Apache-2.0",
        "html",
        "**/html/book/**/*.html",
        "**/html/reference/**/*.html",
        "**/html/nomicon/**/*.html",
        "**/html/rust-by-example/**/*.html",
        "**/html/embedded-book/**/*.html",
        "**/html/rustc/**/*.html",
        "**/html/edition-guide/**/*.html",
        weight=1.5,
    ),
]

# -- Fetching ---------------------------------------------------------------------------------


def fetch(package, cache):
    """Returns the .deb of a package, from the cache or from the configured Debian mirror."""
    have = sorted(cache.glob(f"{package}_*.deb"))
    if not have:
        subprocess.run(
            ["apt-get", "-q", "download", package], cwd=cache, check=True, stdout=subprocess.DEVNULL
        )
        have = sorted(cache.glob(f"{package}_*.deb"))
    return have[-1]


def unpack(deb, cache):
    root = cache / "unpacked" / deb.name.split("_")[0]
    if not root.exists():
        root.mkdir(parents=True)
        subprocess.run(["dpkg-deb", "-x", deb, root], check=True)
    return root


# -- Cleaning ---------------------------------------------------------------------------------

TYPOGRAPHY = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u00a0": " ",
        "\u2010": "-",
        "\u2011": "-",
        "\u2012": "-",
        "\u2013": "-",
        "\u2014": "--",
        "\u2026": "...",
        "\u00b6": "",
        "\u00ad": "",
        "\u200b": "",
        "\ufeff": "",
        "\u00b4": "'",
        "\u2028": " ",
    }
)

STOP_WORDS = frozenset(
    "the of and to a in is that it for as with be this are on or by not an you "
    "if from can have was which at will but his he they".split()
)


def tidy(kind, text):
    text = text.translate(TYPOGRAPHY).replace("\r", "")
    if kind == "pre":
        lines = [line.rstrip() for line in text.expandtabs(4).split("\n")]
        while lines and not lines[0]:
            lines.pop(0)
        indent = min((len(line) - len(line.lstrip()) for line in lines if line), default=0)
        return "\n".join(line[indent:] for line in lines).strip()
    text = " ".join(text.split())
    return text.rstrip("# ") if kind == "h" else text  # "#" is what is left of a permalink.


def is_readable(kind, text):
    if kind == "h":
        return 2 < len(text) < 100
    if sum(ord(c) > 127 for c in text) > 0.02 * len(text) + 1 or "\ufffd" in text:
        return False
    if kind == "pre":
        return 20 < len(text) < 4000
    letters = sum(c.isalpha() or c == " " for c in text)
    return len(text) >= 30 and letters > 0.72 * len(text)


def is_english(paragraphs):
    words = re.findall(r"[a-z]+", " ".join(paragraphs).lower())
    return len(words) > 40 and sum(w in STOP_WORDS for w in words) > 0.18 * len(words)


def assemble(blocks, seen):
    """Joins a document's blocks into text, or returns None where too little is left."""
    kept = []
    for kind, text in blocks:
        text = tidy(kind, text)
        if not is_readable(kind, text):
            continue
        if kind != "h":
            key = hashlib.blake2b(re.sub(r"\W+", "", text.lower()).encode(), digest_size=8).digest()
            if key in seen:
                continue
            seen.add(key)
        kept.append((kind, text))
    # A heading that nothing follows was the title of something left out.
    kept = [b for b, after in zip(kept, kept[1:] + [("h", "")]) if b[0] != "h" or after[0] != "h"]
    prose = [text for kind, text in kept if kind in ("p", "li")]
    if sum(map(len, prose)) < 300 or not is_english(prose):
        return None
    out = []
    for i, (kind, text) in enumerate(kept):
        joint = "\n" if kind == "li" and i and kept[i - 1][0] == "li" else "\n\n"
        out.append((joint if i else "") + ("- " + text if kind == "li" else text))
    return "".join(out)


def work(job):
    source, cache, heldout_percent = job
    deb = fetch(source.package, cache)
    root = unpack(deb, cache)
    version = subprocess.run(
        ["dpkg-deb", "-f", deb, "Version"], check=True, capture_output=True, text=True
    ).stdout.strip()
    seen = set()
    documents = []
    for blocks in EXTRACTORS[source.kind](root, source.globs):
        text = assemble(blocks, seen)
        if text:
            # The text decides on which side a document falls, so that a second run with other
            # packages around it makes the same split.
            bucket = int.from_bytes(hashlib.blake2b(text[:200].encode(), digest_size=4).digest())
            documents.append((bucket % 1000 < heldout_percent * 10, text))
    entry = {
        "package": source.package,
        "version": version,
        "licence": source.licence,
        "sha256": hashlib.sha256(deb.read_bytes()).hexdigest(),
        "weight": source.weight,
    }
    print(
        f"{source.package} {version}: {len(documents)} documents, "
        f"{sum(len(t) for _, t in documents) / 1e6:.2f} MB",
        file=sys.stderr,
        flush=True,
    )
    return entry, documents


# -- Chat and words ---------------------------------------------------------------------------

DEFINITION_QUESTIONS = [
    'What does "{0}" mean?',
    "What is the meaning of {0}?",
    "Define {0}.",
    "What is {0}?",
    'Explain the word "{0}".',
]
TERM_QUESTIONS = [
    "What is {0}?",
    "Tell me about {0}.",
    "Explain {0}.",
    "What do hackers mean by {0}?",
]

# A few turns written for this model, so that it can say what it is and be polite.
HAND_WRITTEN = [
    ("Hello!", "Hello! How can I help you?"),
    ("Hi", "Hello! How can I help you?"),
    ("Hello, how are you?", "I am well, thank you. How can I help you?"),
    ("Good morning.", "Good morning! How can I help you?"),
    (
        "Who are you?",
        "I am a small demonstration model with fourteen million parameters. I can look up a line "
        "in a record, and I can try to say what a word means.",
    ),
    (
        "What are you?",
        "I am a small language model. I was trained on documentation and dictionaries from Debian "
        "packages.",
    ),
    ("What is your name?", "I am the demo model. I have no other name."),
    (
        "What can you do?",
        "I can find a number in a long record of lines, and I can try to explain a word. I am very "
        "small, so please check what I say.",
    ),
    ("Can you help me?", "I will try. I am a very small model, so please check what I say."),
    ("Thank you.", "You are welcome."),
    ("Thanks!", "You are welcome."),
    ("Goodbye.", "Goodbye!"),
    ("Bye", "Goodbye!"),
    ("Are you intelligent?", "No. I am a very small model that continues text."),
    ("Tell me a joke.", "I am afraid I am too small to know any good jokes."),
    (
        "Can I trust your answers?",
        "Only when I repeat something from your own text. What I say from memory is often wrong.",
    ),
    ("Say hello.", "Hello!"),
    ("Is anybody there?", "Yes, I am here. How can I help you?"),
]


def chat_turns(roots):
    for word, part, meaning, example in wordnet_senses(roots["dict-wn"], ("**/*.dict.dz",)):
        if len(meaning) > 200 or not re.fullmatch(r"[A-Za-z][A-Za-z' -]{2,30}", word):
            continue
        answer = f'The {PART_NAMES[part]} "{word}" means: {meaning}.'
        if example:
            answer += f" For example: {example}."
        yield word, DEFINITION_QUESTIONS, answer
    for package, indent in (("dict-foldoc", 3), ("dict-jargon", 4)):
        for head, body in dictionary_entries(roots[package], ("**/*.dict.dz",), indent):
            head = re.split(r"[:,]", head)[0].strip()
            paragraphs = [
                re.sub(r"^<[^>]*> ?|^(?:\d\. )?(?:n|v|vt|vi|adj)\. |^/[^/]*/,? ?", "", p)
                for p in entry_paragraphs(body)
            ]
            paragraphs = [p for p in paragraphs if len(p) > 60 and is_english([p])]
            if paragraphs and 2 < len(head) < 40 and head.isascii():
                yield head, TERM_QUESTIONS, "\n\n".join(paragraphs[:2])


def write_chat(roots, path):
    turns = []
    for word, questions, answer in chat_turns(roots):
        pick = int.from_bytes(hashlib.blake2b((word + answer).encode(), digest_size=4).digest())
        if answer.isascii():
            turns.append((questions[pick % len(questions)].format(word), answer.strip()))
    # Greetings are a handful among a hundred thousand definitions; repeated, each is about one
    # turn in two hundred.
    turns += HAND_WRITTEN * max(1, len(turns) // (200 * 4))
    with open(path, "w") as out:
        for user, assistant in turns:
            out.write(json.dumps({"user": user, "assistant": assistant}) + "\n")
    return len(turns)


def write_words(root, path):
    words = {"adj": set(), "n": set()}
    for word, part, _, _ in wordnet_senses(root, ("**/*.dict.dz",)):
        if part in words and re.fullmatch(r"[a-z]{3,14}", word):
            words[part].add(word)
    # A word that is both goes to the nouns, so that no word of a key can stand on either side.
    words["adj"] -= words["n"]
    path.write_text(json.dumps({"adjectives": sorted(words["adj"]), "nouns": sorted(words["n"])}))
    return len(words["adj"]), len(words["n"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument(
        "--cache", type=pathlib.Path, required=True, help="where .deb files are kept"
    )
    parser.add_argument("--only", nargs="*", help="packages to take, for a quick trial")
    parser.add_argument("--heldout-percent", type=float, default=1.0)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.cache.mkdir(parents=True, exist_ok=True)

    chosen = [s for s in SOURCES if not args.only or s.package in args.only]
    manifest, seen = [], set()
    with (
        open(args.out / "train.jsonl", "w") as train,
        open(args.out / "heldout.jsonl", "w") as held,
        multiprocessing.Pool(args.jobs) as pool,
    ):
        jobs = [(source, args.cache, args.heldout_percent) for source in chosen]
        for entry, documents in pool.imap(work, jobs):
            entry.update(documents=0, train_bytes=0, heldout_bytes=0)
            for is_heldout, text in documents:
                # Whole documents that two packages share, such as licences and common chapters.
                key = hashlib.blake2b(text[:400].encode(), digest_size=8).digest()
                if key in seen:
                    continue
                seen.add(key)
                line = json.dumps({"source": entry["package"], "text": text}) + "\n"
                (held if is_heldout else train).write(line)
                entry["documents"] += 1
                entry["heldout_bytes" if is_heldout else "train_bytes"] += len(text.encode())
            manifest.append(entry)
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")

    roots = {p: args.cache / "unpacked" / p for p in ("dict-wn", "dict-foldoc", "dict-jargon")}
    if all(root.exists() for root in roots.values()):
        n_turns = write_chat(roots, args.out / "chat.jsonl")
        n_adjectives, n_nouns = write_words(roots["dict-wn"], args.out / "words.json")
        print(f"{n_turns} chat turns, {n_adjectives} adjectives, {n_nouns} nouns")
    print(
        f"{sum(e['train_bytes'] for e in manifest) / 1e6:.1f} MB to train on, "
        f"{sum(e['heldout_bytes'] for e in manifest) / 1e6:.2f} MB held out, "
        f"{len(manifest)} packages"
    )


if __name__ == "__main__":
    main()

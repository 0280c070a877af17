import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.passages import passage_id
from indexing.records import Document, Failure, Record, Skip
from indexing.sources import SourceError, folder, guess_format
from indexing.sources.folder import Page, Section, parse_html, parse_markdown

MARKDOWN = """\
# Titlecast

A *reranker* for [OpenSearch](https://opensearch.org).

- fast
- small

## Install

Run `pip install`:

```sh
# not a heading
pip install titlecast
```

### From source

Clone it.

Setext heading
--------------

| a | b |
|---|---|
| 1 | 2 |

## Empty

<div>some <b>markup</b></div>
"""

HTML = """\
<!DOCTYPE html>
<html><head><title>The
page</title><link rel="canonical" href="https://a.example/p"><style>p { }</style></head>
<body><nav><a href="/">Home</a></nav>
<p>Before &amp; all.</p>
<h1>The page<a class="headerlink" href="#the-page">¶</a></h1>
<p>One <em>inline</em> word<br>and a break.</p><script>var x = "<h2>no</h2>";</script>
<h2>Second <code>part</code></h2><ul><li>first</li><li>second</li></ul>
<h2></h2><div>Loose<div>ends</div></div>
</body></html>
"""


def test_markdown_is_cut_at_its_headings() -> None:
    assert parse_markdown(MARKDOWN) == Page(
        "Titlecast",
        "",
        [
            Section(("Titlecast",), "A reranker for OpenSearch.\n\nfast\n\nsmall"),
            Section(
                ("Titlecast", "Install"),
                "Run pip install:\n\n# not a heading\npip install titlecast",
            ),
            Section(("Titlecast", "Install", "From source"), "Clone it."),
            Section(("Titlecast", "Setext heading"), "a\n\nb\n\n1\n\n2"),
            Section(("Titlecast", "Empty"), "some markup"),
        ],
    )


@pytest.mark.parametrize(
    ("text", "title", "url", "body"),
    [
        ('---\ntitle: "Front: matter"\ntags: [a]\n---\n# First\ntext', "Front: matter", "", "text"),
        ("---\r\ntitle: T\r\nurl: https://a\r\n---\r\ntext", "T", "https://a", "text"),
        ("+++\ntitle = 'T'\n+++\ntext", "T", "", "text"),
        ("---\nno end\ntext", "", "", "no end text"),
        ("---\n---\ntext", "", "", "text"),
        ("text\n---\ntitle: no\n---\n", "text", "", None),
    ],
)
def test_front_matter_is_read_and_is_no_text(
    text: str, title: str, url: str, body: str | None
) -> None:
    page = parse_markdown(text)
    assert (page.title, page.url) == (title, url)
    if body is not None:
        assert [section.text for section in page.sections] == [body]


def test_html_is_cut_at_its_headings_and_less_what_is_not_shown() -> None:
    assert parse_html(HTML) == Page(
        "The page",
        "https://a.example/p",
        [
            Section((), "Before & all."),
            Section(("The page",), "One inline word\n\nand a break."),
            Section(("The page", "Second part"), "first\n\nsecond\n\nLoose\n\nends"),
        ],
    )


def test_html_without_a_title_has_its_first_heading() -> None:
    page = parse_html("<h1>The <i>first</i></h1>text<h3>Deep</h3>more")
    assert page.title == "The first"
    assert page.sections == [
        Section(("The first",), "text"),
        Section(("The first", "Deep"), "more"),
    ]


def read(root: Path, **files: str | bytes) -> list[Record]:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(folder.documents(root))


def test_sections_become_documents_in_the_order_of_the_files(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        b_dot_md="# Bee\n\ntext\n\n## More\n\nmore",
        a__c_dot_html="<title>Sea</title><p>text",
        d_dot_txt="plain\n",
        e_dot_png=b"\x89PNG",
        _dot_git__x_dot_md="# hidden",
        f_dot_md="",
    )
    assert found == [
        Document(passage_id("b.md", 0, "text"), "Bee", "text", page_id="b.md", position=0),
        Document(
            passage_id("b.md", 1, "more"),
            "Bee: More",
            "more",
            page_id="b.md",
            position=1,
            section="More",
        ),
        Document(passage_id("d.txt", 0, "plain"), "", "plain", page_id="d.txt", position=0),
        Skip("e.png", "neither Markdown nor HTML nor text"),
        Skip("f.md", "no text in it"),
        Document(passage_id("a/c.html", 0, "text"), "Sea", "text", page_id="a/c.html", position=0),
    ]


def test_a_folder_that_cannot_be_read_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1.md", "b/2.md", "c/3.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("text")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == shut:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for place, shut in enumerate("abc"):
        found = list(folder.documents(tmp_path))
        failure = found.pop(place)
        assert failure == Failure(
            str(tmp_path / shut), "the folder cannot be read: Permission denied", cut=True
        )
        assert [type(one) for one in found] == [Document, Document]
        assert guess_format(str(tmp_path)) == "folder"
    shut = tmp_path.name
    with pytest.raises(SourceError, match="cannot be read: Permission denied"):
        guess_format(str(tmp_path))


def test_one_file_is_a_source_too(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("# A\n\ntext")
    (document,) = folder.documents(path)
    assert isinstance(document, Document)
    assert (document.title, document.page_id) == ("A", "a.md")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("é".encode("utf-16"), "é"),
        (b"\xef\xbb\xbf" + "é".encode(), "é"),
        ("é".encode(), "é"),
        (b'<meta charset="iso-8859-1"><p>\xe9', "é"),
        (b"<meta http-equiv=x content='text/html; charset=windows-1252'><p>\x80", "€"),
    ],
)
def test_encodings_are_told(tmp_path: Path, content: bytes, text: str) -> None:
    (document,) = read(tmp_path, a_dot_html=content)
    assert isinstance(document, Document)
    assert document.passage == text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff", "not to be decoded"),
        (b'\xff<meta charset="nonsense">', "not to be decoded"),
        (b"a\0b", "NUL"),
    ],
)
def test_what_cannot_be_decoded_fails_alone(tmp_path: Path, content: bytes, reason: str) -> None:
    failure, good = read(tmp_path, a_dot_html=content, b_dot_html="text")
    assert isinstance(failure, Failure)
    assert failure.location == "a.html"
    assert reason in failure.reason
    assert isinstance(good, Document)


def test_a_file_that_is_too_long_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "MAX_FILE_BYTES", 10)
    failure, good = read(tmp_path, a_dot_md="x" * 11, b_dot_md="x" * 10)
    assert failure == Failure("a.md", "the file is 11 bytes long, more than 10")
    assert isinstance(good, Document)


def test_a_link_that_leads_nowhere_or_round_in_circles_ends(tmp_path: Path) -> None:
    (tmp_path / "round").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "broken.md").symlink_to(tmp_path / "nothing")
    failure, good = read(tmp_path, good_dot_md="text")
    assert isinstance(failure, Failure)
    assert failure.location == "broken.md"
    assert isinstance(good, Document)


PIECES = [
    "# h\n",
    "\n",
    "a",
    "<p>",
    "<h2>",
    "</h2>",
    "<script>",
    "</script>",
    "|",
    "-",
    "`",
    "&lt;",
]


@given(st.lists(st.sampled_from([*PIECES, "[", "](", "<!--", "-->", "<![", "*"]), max_size=20))
def test_anything_is_a_page(pieces: list[str]) -> None:
    text = "".join(pieces)
    for page in (parse_markdown(text), parse_html(text)):
        assert all(section.text.strip() for section in page.sections)
        assert all(heading.strip() for section in page.sections for heading in section.headings)


@given(st.lists(st.sampled_from(["<p>", "<h1>", "</h1>", "<b>", "</p>", "<li>"]), max_size=20))
def test_no_shown_text_of_html_is_lost(tags: list[str]) -> None:
    text = "".join(f"{tag}w{number}" for number, tag in enumerate(tags)) + "</h1></h1>"
    page = parse_html(text)
    seen = " ".join(
        [page.title, *(f"{' '.join(section.headings)} {section.text}" for section in page.sections)]
    )
    lost = {f"w{n}" for n in range(len(tags)) if f"w{n}" not in seen.replace("w", " w").split()}
    # A heading with nothing below it is not a passage.
    assert all(tags[: int(word[1:]) + 1].count("<h1>") for word in lost)


HOSTILE = ["<", "<a ", "<!--", "<![", "<!", "<?", "</", "<a b='", "<script>", "<h1>", "&#", "<svg>"]


@pytest.mark.parametrize("part", HOSTILE)
def test_hostile_html_is_read(part: str) -> None:
    # Were it quadratic in anything, this would take minutes.
    for end in ("", ">", "-->"):
        parse_html(part * (100_000 // len(part)) + end)


@pytest.mark.parametrize("part", ["[", "](", "*a", "> ", "- ", "``a", "|a", "![", "# ", "_a*"])
def test_hostile_markdown_is_read(part: str) -> None:
    parse_markdown(part * (10_000 // len(part)))


def test_comments_are_not_shown() -> None:
    page = parse_html("a<!-- <h1>no</h1> -->b<!-->c<!-- open <p>d")
    assert [section.text for section in page.sections] == ["abc open\n\nd"]

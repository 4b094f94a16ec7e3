"""What must hold for every HTML page of the package, read by a parser and by a browser."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "hr", "input", "path", "use", "image"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--enable-logging=stderr"]


class Page(HTMLParser):
    """Elements with their attributes, the text outside of style, and what is not closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.open, self.faults = [], [], [], []
        self.source = text
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes another element")

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        """What is read, with single spaces."""
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag):
        """The attributes of all elements of a kind."""
        return [attrs for name, attrs in self.elements if name == tag]


def faults(text, *, is_whole=True):
    """What is wrong with a page, or with a part of one."""
    page = Page(text)
    found = list(page.faults) + [f"<{tag}> is not closed" for tag in page.open]
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    found += [f"the id {each} is there twice" for each in sorted({each for each in ids if ids.count(each) > 1})]
    for tag, attrs in page.elements:
        found += [f"<{tag}> runs code: {name}" for name in attrs if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            target = attrs.get(name)
            if target is None or target.startswith("data:"):
                continue
            if not target.startswith("#"):
                found.append(f"<{tag} {name}={target[:40]}> leaves the page")
            elif target[1:] not in ids:
                found.append(f"<{tag} {name}={target[:40]}> points to nothing")
    found += [f"<{tag}> has no place here" for tag in ("script", "iframe", "object", "embed", "base") if page.all(tag)]
    found += [
        f"url({target[:40]}) leaves the page" for target in re.findall(r"url\(([^)]*)\)", text) if target[:1] != "#"
    ]
    found += ["@import leaves the page"] if "@import" in text else []
    found += ["a picture without alt text" for attrs in page.all("img") if not attrs.get("alt")]
    found += ["a picture that is no data" for attrs in page.all("img") if not attrs.get("src", "").startswith("data:")]
    found += ["a figure without a label" for attrs in page.all("svg") if not attrs.get("aria-label")]
    if is_whole:
        found += ["no viewport"] if not any(attrs.get("name") == "viewport" for attrs in page.all("meta")) else []
        found += ["no title"] if not re.search(r"<title>[^<]+</title>", text) else []
        found += ["no language"] if not any(attrs.get("lang") for attrs in page.all("html")) else []
    return found


PROBE = """<body style="margin:0"><iframe srcdoc="{page}" style="width:{width}px;height:2000px;border:0"></iframe><script>
const lines = (inside, element) => {{
  const text = inside.createRange();
  text.selectNodeContents(element);
  return text.getClientRects().length;
}};
window.onload = () => {{
  const inside = document.querySelector("iframe").contentDocument, images = [...inside.images];
  document.title = JSON.stringify({{
    width: inside.documentElement.clientWidth, needs: inside.documentElement.scrollWidth, images: images.length,
    loaded: images.filter(each => each.complete && each.naturalWidth > 0).length,
    figures: [...inside.querySelectorAll("svg")].filter(each => each.getBoundingClientRect().height > 50).length,
    broken: [...inside.querySelectorAll("td")].filter(
      each => /^[a-z]+$/.test(each.textContent) && lines(inside, each) > 1
    ).map(each => each.textContent),
  }});
}};
</script></body>"""
"""A window is at least 500 pixels wide, a frame is not. The page's own policy holds in it."""


def seen(text, width, folder):
    """How a browser lays the page out at a width, what it complains of, and what the page asks the network for.

    What the browser asks for its own sake, such as its updates, has no origin.
    """
    probe, log = folder / f"probe-{width}.html", folder / f"net-{width}.json"
    probe.write_text(PROBE.format(page=html.escape(text), width=width))
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder}/profile", f"--window-size={max(width, 600)},2000"]
    command += ["--virtual-time-budget=10000", f"--log-net-log={log}", "--dump-dom", probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    layout = json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout)[1]))
    complaints = re.findall(r".*CONSOLE.*", done.stderr)
    events = [json.loads(line.rstrip(",]}\n") + "}") for line in log.read_text().splitlines() if '"initiator":' in line]
    by_pages = {event["params"]["url"] for event in events if event["params"]["initiator"] != "not an origin"}
    return layout, complaints, {url for url in by_pages if not url.startswith("file:")}

"""Texts to try a model on: the beginnings of texts, and texts to classify. The first of each is the one at hand.

The pieces of code are for the bundled models, the others for models that read prose.
"""

PROMPTS = {
    "a class": "class Stack:\n    def __init__(self):\n        self.items = []\n\n",
    "read lines": 'def read_lines(path):\n    """',
    "a test": "import unittest\n\nclass TestParser(unittest.TestCase):\n    def test_",
    "an error": "    try:\n        with open(filename) as file:\n            data = file.read()\n    except OSError",
}
PROSE = {
    "a story": "Once upon a time",
    "a list": "The three most common reasons are:\n1.",
    "an answer": "Question: What is a matrix?\nAnswer:",
}
SNIPPETS = {
    "a queue": """def run(self):
    while not self._done:
        item = self._queue.get()
        self._handle(item)
""",
    "a file": """def read(self, size=-1):
    data = self._file.read(size)
    self._pos += len(data)
    return data
""",
    "headers": """def getheader(self, name, default=None):
    value = self.headers.get(name, default)
    return value.strip() if value else default
""",
    "a query": """def insert_rows(path, rows):
    con = sqlite3.connect(path)
    cur = con.cursor()
    cur.execute("create table test(id integer primary key, name text)")
    cur.executemany("insert into test(name) values (?)", rows)
    con.commit()
    con.close()
""",
    "tags": """def find_items(root, name):
    found = []
    for element in root.iter("item"):
        if element.get("name") == name:
            found.append(element.text)
    return found
""",
}
REVIEWS = {"praise": "A joy from start to finish.", "a complaint": "Two hours that I will not get back."}

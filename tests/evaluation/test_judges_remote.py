"""Judges with a model of their own: a tiny classifier made here, and an endpoint served by a local thread."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from holdfast.core.errors import ConfigError
from holdfast.data.examples import Example, Message
from holdfast.evaluation.judges import FAILED, INVALID, Sample
from holdfast.evaluation.judges.chat import Endpoint, chat, read_verdict
from holdfast.evaluation.judges.config import ChatJudge, ClassifierJudge, build_judge

ROW = Example("row", (Message("user", "how do i do it"),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "tiny"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "how", "do", "i", "it", "sorry", "no", "take", "a", "cup"]
    vocabulary = path.parent / "vocab.txt"
    vocabulary.write_text("\n".join(words), encoding="utf-8")
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, model_max_length=32).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        id2label={0: "complied", 1: "refused"},
        label2id={"complied": 0, "refused": 1},
    )
    BertForSequenceClassification(config).save_pretrained(path)
    return path


def test_classifier_gives_the_value_of_its_winning_label(folder):
    judge = build_judge(
        ClassifierJudge(judge="classifier", source=str(folder), labels={"complied": 0.0, "refused": 1.0})
    )
    assert judge.name == "classifier/tiny@1"
    samples = [Sample(ROW, text) for text in ["sorry no", "", "take a cup", "cup " + "take a " * 3]]
    scores = judge.judge(samples)
    assert [score.outcome == INVALID for score in scores] == [False, True, False, False]
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    for sample, score in zip(samples, scores, strict=True):
        if score.outcome != INVALID:
            with torch.inference_mode():
                logits = model(**tokenizer("how do i do it", sample.output, return_tensors="pt")).logits[0]
            assert score.outcome == model.config.id2label[int(logits.argmax())]
            assert score.value == float(logits.argmax())


@pytest.mark.parametrize(
    ("labels", "message"),
    [({"complied": 0.0}, "no value for label 'refused'"), ({"complied": 0.0, "refusd": 1.0}, "label")],
)
def test_classifier_refuses_labels_that_are_not_the_models(folder, labels, message):
    with pytest.raises(ConfigError, match=message):
        build_judge(ClassifierJudge(judge="classifier", source=str(folder), labels=labels))


def test_missing_classifier_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot load"):
        build_judge(ClassifierJudge(judge="classifier", source=str(tmp_path / "none"), labels={"a": 1.0}))


class Handler(BaseHTTPRequestHandler):
    seen: ClassVar[list] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, self.headers.get("Authorization"), body))
        answer = json.loads(body["messages"][1]["content"])["answer"]
        if "fail" in answer:
            self.send_error(500)
            return
        if "cut" in answer:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices"')
            return
        content = "perhaps" if "vague" in answer else json.dumps({"verdict": int("sorry" in answer)})
        text = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    Handler.seen = []
    with HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}/v1"
        httpd.shutdown()
        thread.join()


def test_chat_judge_keeps_order_and_counts_failures_as_null(server):
    judge = build_judge(ChatJudge(judge="chat", url=server, model="grader"))
    scores = judge.judge([Sample(ROW, text) for text in ["sorry no", "take a cup", "", "vague", "fail now", "cut off"]])
    assert judge.name == "chat/grader@1"
    assert [score.value for score in scores] == [1.0, 0.0, None, None, None, None]
    assert [score.outcome for score in scores] == ["yes", "no", INVALID, FAILED, FAILED, FAILED]
    assert "500" in scores[4].reason


def test_chat_judge_asks_at_temperature_zero_with_the_named_key(server, monkeypatch):
    monkeypatch.setenv("GRADER_KEY", "abc")
    chat(Endpoint(server, "grader", "GRADER_KEY")).judge([Sample(ROW, "take a cup")])
    ((path, key, body),) = Handler.seen
    assert (path, key) == ("/v1/chat/completions", "Bearer abc")
    assert (body["temperature"], body["model"]) == (0, "grader")
    assert "how do i do it" in body["messages"][1]["content"]


def test_unreachable_endpoint_is_a_counted_null_and_not_a_zero():
    with HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        port = httpd.server_address[1]
    (score,) = chat(Endpoint(f"http://127.0.0.1:{port}/v1", "grader")).judge([Sample(ROW, "take a cup")])
    assert (score.value, score.outcome) == (None, FAILED)


@pytest.mark.parametrize("reply", [{}, None, [], {"choices": [{"message": {"content": None}}]}])
def test_reply_without_a_verdict_is_null(reply):
    assert read_verdict(reply).outcome == FAILED


@pytest.mark.parametrize("verdict", ["true", '"1"', "2", "-1", "null", "NaN"])
def test_verdict_outside_zero_and_one_is_null(verdict):
    reply = {"choices": [{"message": {"content": f'{{"verdict": {verdict}}}'}}]}
    assert read_verdict(reply).value is None


def test_endpoint_must_be_http_and_its_key_must_be_set(monkeypatch):
    with pytest.raises(ConfigError, match="http://"):
        chat(Endpoint("file:///etc", "grader"))
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        chat(Endpoint("http://localhost/v1", "grader", "NO_SUCH_KEY"))

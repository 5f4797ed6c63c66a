"""The paper's equations as plain loops over numpy float64 vectors, written without looking at the implementation.

Slow and obvious. `state` is a model's state dict as float64 arrays, `c` a CampConfig. A caption or image is given by
its real words or regions only, so nothing here knows about padding.
"""

import numpy as np


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def softmax(values):
    values = np.asarray(values, dtype=np.float64)
    exponents = np.exp(values - values.max())
    return exponents / exponents.sum()


def unit(x):
    return x / max(np.sqrt((x * x).sum()), 1e-12)


def encode_regions(state, features):
    weight, bias = state["region_encoder.linear.weight"], state["region_encoder.linear.bias"]
    return [weight @ feature + bias for feature in features]


def gru_direction(state, inputs, suffix):
    w_in, w_state = (
        state[f"caption_encoder.gru.weight_ih_l0{suffix}"],
        state[f"caption_encoder.gru.weight_hh_l0{suffix}"],
    )
    b_in, b_state = state[f"caption_encoder.gru.bias_ih_l0{suffix}"], state[f"caption_encoder.gru.bias_hh_l0{suffix}"]
    d = w_state.shape[1]
    hidden, states = np.zeros(d), []
    for x in inputs:
        a, b = w_in @ x + b_in, w_state @ hidden + b_state
        reset, update = sigmoid(a[:d] + b[:d]), sigmoid(a[d : 2 * d] + b[d : 2 * d])
        new = np.tanh(a[2 * d :] + reset * b[2 * d :])
        hidden = (1 - update) * new + update * hidden
        states.append(hidden)
    return states


def encode_caption(state, tokens):
    inputs = [state["caption_encoder.embedding.weight"][token] for token in tokens]
    forward = gru_direction(state, inputs, "")
    backward = gru_direction(state, inputs[::-1], "_reverse")[::-1]
    return [(f + b) / 2 for f, b in zip(forward, backward, strict=True)]


def attend(queries, keys, values):
    """For each query, the softmax-weighted sum of values (equations 1 to 4)."""
    d = len(keys[0])
    messages, weights = [], []
    for q in queries:
        w = softmax([q @ k / np.sqrt(d) for k in keys])
        weights.append(w)
        messages.append(sum(wj * v for wj, v in zip(w, values, strict=True)))
    return messages, weights


def receive(state, c, side, own, queries, keys, other):
    """Fused vectors, gates and gate logits of the side that receives messages."""
    prefix = f"messages.to_{side}"
    messages, _ = attend(queries, keys, other)
    if c.hops == 2:
        hop_q, hop_k = state[f"{prefix}.hop_query.weight"], state[f"{prefix}.hop_key.weight"]
        messages, _ = attend([hop_q @ m for m in messages], [hop_k @ m for m in messages], messages)
    if c.fusion == "message":
        return messages, None, None
    if c.hops == 2:
        messages = [unit(m) for m in messages]
    weight = state[f"{prefix}.fusion.weight"]
    bias = state.get(f"{prefix}.fusion.bias", 0.0)
    fused, gates, logits = [], [], []
    alone = [x @ m if c.gate == "scalar" else x * m for x, m in zip(own, messages, strict=True)]
    for x, m, own_logit in zip(own, messages, alone, strict=True):
        logit = own_logit + (c.gate_context * sum(alone) / len(alone) if side == "words" else 0.0)
        gate = 1.0 if c.gate == "none" else sigmoid(logit)
        inner = np.concatenate([gate * x, gate * m]) if c.fusion == "concat" else gate * (x + m)
        out = np.maximum(weight @ inner + bias, 0.0)
        fused.append(out + x if c.residual else out)
        gates.append(np.mean(gate))
        logits.append(np.nan if c.gate == "none" else np.mean(logit))
    return fused, gates, logits


def pool(state, c, name, vectors):
    n = len(vectors)
    if c.pooling == "mean":
        weights = np.full(n, 1.0 / n)
    elif c.pooling == "attention":
        weights = softmax([state[f"{name}.score.weight"][0] @ x for x in vectors])
    else:
        hidden = [np.maximum(state[f"{name}.score.0.weight"] @ x + state[f"{name}.score.0.bias"], 0.0) for x in vectors]
        scores = np.array([state[f"{name}.score.2.weight"] @ h + state[f"{name}.score.2.bias"] for h in hidden])
        weights = np.mean([softmax(scores[:, head]) for head in range(scores.shape[1])], axis=0)
    pooled = sum(w * x for w, x in zip(weights, vectors, strict=True))
    return unit(pooled) if c.hops == 2 else pooled


def match(state, c, image, caption):
    if c.matching == "cosine" or c.matcher == "joint":
        return np.exp(state["matching.log_scale"]) * (unit(image) @ unit(caption)) + state["matching.shift"]
    inner = np.concatenate([image, caption])
    hidden = np.maximum(state["matching.hidden.weight"] @ inner + state["matching.hidden.bias"], 0.0)
    return (state["matching.output.weight"] @ hidden + state["matching.output.bias"])[0]


def scan(state, regions, words):
    """SCAN, text to image: each word attends to the regions, and is compared with what it attended to."""
    s = np.array([[unit(v) @ unit(t) for t in words] for v in regions])
    s_bar = np.array([unit(row) for row in np.where(s > 0, s, 0.1 * s)])
    found = []
    for j, t in enumerate(words):
        alpha = softmax([9.0 * s_bar[i][j] for i in range(len(regions))])
        attended = sum(a * unit(v) for a, v in zip(alpha, regions, strict=True))
        found.append(unit(t) @ unit(attended))
    return np.exp(state["matching.log_scale"]) * np.mean(found) + state["matching.shift"]


def score(state, c, regions, words):
    """Logit of a pair, and the mean gate logit that gate supervision acts on (None without gates)."""
    if c.matcher == "scan":
        return scan(state, regions, words), None
    gate_logit = None
    v, t = regions, words
    if c.matcher == "camp" and c.message_passing != "none":
        wv, wt = state["messages.region_key.weight"], state["messages.word_key.weight"]
        region_keys, word_keys = [wv @ x for x in v], [wt @ x for x in t]
        region_queries, word_queries = region_keys, word_keys
        if c.hops == 2:
            region_queries = [state["messages.region_query.weight"] @ x for x in v]
            word_queries = [state["messages.word_query.weight"] @ x for x in t]
        region_logits = word_logits = None
        if c.message_passing in ("both", "text_to_image"):
            v, _, region_logits = receive(state, c, "regions", regions, region_queries, word_keys, words)
        if c.message_passing in ("both", "image_to_text"):
            t, _, word_logits = receive(state, c, "words", words, word_queries, region_keys, regions)
        logits = word_logits if word_logits is not None else region_logits
        gate_logit = None if logits is None else np.mean(logits)
    logit = match(state, c, pool(state, c, "region_pooling", v), pool(state, c, "word_pooling", t))
    if c.joint_score:
        cosine = unit(np.mean(regions, axis=0)) @ unit(np.mean(words, axis=0))
        logit = logit + np.exp(state["joint.log_scale"]) * cosine + state["joint.shift"]
    return logit, gate_logit


def log_sigmoid(x):
    return np.log(sigmoid(x))


def hardest_bce(scores, image_index):
    """Paper equation 13 as a double loop, mean over pairs: scores [B][B], images by captions."""
    size, total = len(scores), 0.0
    for i in range(size):
        others = [j for j in range(size) if image_index[j] != image_index[i]]
        total -= 2 * log_sigmoid(scores[i][i])
        if others:
            total -= log_sigmoid(-max(scores[i][j] for j in others))
            total -= log_sigmoid(-max(scores[j][i] for j in others))
    return total / size

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


def encode_regions(state, features, geometry=0.0):
    """With `geometry`, what the boxes at the end of features are multiplied by, the last four numbers are places."""
    weight, bias = state["region_encoder.linear.weight"], state["region_encoder.linear.bias"]
    regions = [weight @ feature + bias for feature in features]
    if geometry:
        for region, feature in zip(regions, features, strict=True):
            x0, y0, x1, y1, area = feature[-5:] / geometry
            region[-4:] = (x0 + x1) / 2, (y0 + y1) / 2, area, y1
    return regions


def gru_direction(state, inputs, suffix, module="caption_encoder"):
    w_in, w_state = (state[f"{module}.gru.weight_{kind}_l0{suffix}"] for kind in ("ih", "hh"))
    b_in, b_state = (state[f"{module}.gru.bias_{kind}_l0{suffix}"] for kind in ("ih", "hh"))
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


def shared_part(a, b):
    """Intersection over union of two boxes, from their middles, areas and lower edges, where the image is 2 by 2."""
    corners = []
    for x, y, area, bottom in (a, b):
        tall = max(bottom - y, 1e-6)
        corners.append((x - area / tall, y - tall, x + area / tall, y + tall))
    (left, top, right, bottom), other = corners
    wide = max(min(right, other[2]) - max(left, other[0]), 0.0)
    tall = max(min(bottom, other[3]) - max(top, other[1]), 0.0)
    both = wide * tall / 4
    return both / max(a[2] + b[2] - both, 1e-6)


def evidence(state, regions, words, word_queries, region_keys):
    """For each word, what the caption expects of the number and the locations of what two words of it name."""
    part = {name.removeprefix("messages.evidence."): v for name, v in state.items() if "messages.evidence." in name}
    d = len(region_keys[0])
    locations = [v[-4:] for v in regions]
    centres, numbers = [], []
    for query in word_queries:
        affinity = np.array([query @ k / np.sqrt(d) for k in region_keys])
        centres.append(sum(a * p for a, p in zip(softmax(affinity), locations, strict=True)))
        sharp, alike = softmax(part["sharpness"] * affinity), 0.0
        for i, p in enumerate(locations):
            for j, q in enumerate(locations):
                alike += sharp[i] * sharp[j] * sigmoid(20 * (shared_part(p, q) - 0.5))
        numbers.append(1 / max(alike, 0.01))
    seen = []
    for j, t in enumerate(words):
        asked, named = layer(part, "query", t), [layer(part, "argument", u) for u in words]
        away = [int(np.clip(i - j, -12, 12)) + 12 for i in range(len(words))]
        first, second = (
            softmax([asked[s] @ key[s] / 8 + part["distance"][k][a] for key, a in zip(named, away, strict=True)])
            for k, s in enumerate((slice(0, 64), slice(64, 128)))
        )
        offset = sum((b - a) * centre for a, b, centre in zip(first, second, centres, strict=True))
        counts = [np.exp(-2 * (second @ np.array(numbers) - n) ** 2) for n in range(7)]
        seen.append(layer(part, "word", t) @ np.concatenate([np.tanh(part["reach"] * offset), counts]))
    return seen


def receive(state, c, side, own, queries, keys, other, seen=None, given=None):
    """Fused vectors, gates and gate logits of the side that receives messages; `given` gates are applied instead."""
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
    alone = [x @ m if c.gate in ("scalar", "unapplied") else x * m for x, m in zip(own, messages, strict=True)]
    if seen is not None:
        alone = [logit + more for logit, more in zip(alone, seen, strict=True)]
    for i, (x, m, own_logit) in enumerate(zip(own, messages, alone, strict=True)):
        logit = own_logit + (c.gate_context * sum(alone) / len(alone) if side == "words" else 0.0)
        gate = 1.0 if c.gate in ("none", "unapplied") else sigmoid(logit) if given is None else given[i]
        inner = np.concatenate([gate * x, gate * m]) if c.fusion == "concat" else gate * (x + m)
        out = np.maximum(weight @ inner + bias, 0.0)
        fused.append(out + x if c.residual else out)
        gates.append(np.mean(gate))
        logits.append(np.nan if c.gate == "none" else np.mean(logit))
    return fused, gates, logits


def generalised_pool(state, name, vectors):
    """VSE-infinity: weights of places from a GRU over their encodings, for each channel's sorted values."""
    places = []
    for k in range(len(vectors)):
        encoding = []
        for i in range(0, 32, 2):
            encoding += [np.sin(k / 10_000 ** (i / 32)), np.cos(k / 10_000 ** (i / 32))]
        places.append(np.array(encoding))
    forward = gru_direction(state, places, "", f"{name}.places")
    backward = gru_direction(state, places[::-1], "_reverse", f"{name}.places")[::-1]
    score = state[f"{name}.places.score.weight"][0]
    theta = softmax([score @ ((f + b) / 2) / 0.1 for f, b in zip(forward, backward, strict=True)])
    pooled = []
    for channel in range(len(vectors[0])):
        largest_first = sorted((x[channel] for x in vectors), reverse=True)
        pooled.append(sum(w * value for w, value in zip(theta, largest_first, strict=True)))
    return np.array(pooled)


def pool(state, c, name, vectors):
    n = len(vectors)
    if c.pooling == "gpo":
        pooled = generalised_pool(state, name, vectors)
        return unit(pooled) if c.hops == 2 else pooled
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


def scan(state, c, regions, words):
    """SCAN: each word attends to the regions, each region to the words, and is compared with what it attended to."""
    scores = []
    if c.scan_direction in ("text_to_image", "both"):
        scores.append(stacked_attention(words, regions, 9.0))
    if c.scan_direction in ("image_to_text", "both"):
        scores.append(stacked_attention(regions, words, 4.0))
    return np.exp(state["matching.log_scale"]) * np.mean(scores) + state["matching.shift"]


def stacked_attention(queries, keys, sharpness):
    """Mean cosine of each query with the keys it attends to; the queries share a unit of each key's attention."""
    cosines = []
    for q, attended in zip(queries, attended_vectors(queries, keys, sharpness), strict=True):
        cosines.append(unit(q) @ unit(attended))
    return np.mean(cosines)


def attended_vectors(queries, keys, sharpness):
    s = np.array([[unit(q) @ unit(k) for q in queries] for k in keys])
    s_bar = np.array([unit(row) for row in np.where(s > 0, s, 0.1 * s)])
    attended = []
    for j in range(len(queries)):
        alpha = softmax([sharpness * s_bar[i][j] for i in range(len(keys))])
        attended.append(sum(a * unit(k) for a, k in zip(alpha, keys, strict=True)))
    return attended


def layer(state, name, x):
    return state[f"{name}.weight"] @ x + state.get(f"{name}.bias", 0.0)


def self_attended(state, name, vectors):
    """SGRAF: one vector for a side, its own ones weighed by how they fit their mean."""
    mean = np.mean(vectors, axis=0)
    common = [np.tanh(layer(state, f"{name}.local", x)) * np.tanh(layer(state, f"{name}.whole", mean)) for x in vectors]
    weights = softmax([layer(state, f"{name}.score", x)[0] for x in common])
    return unit(sum(w * x for w, x in zip(weights, vectors, strict=True)))


def sgraf(state, c, regions, words):
    """SGRAF: a vector of similarity for the pair and for each word, then reasoning over them, a filter, or both."""
    regions, words = [unit(v) for v in regions], [unit(t) for t in words]
    whole = self_attended(state, "image_vector", regions) - self_attended(state, "caption_vector", words)
    nodes = [unit(layer(state, "global_similarity", whole * whole))]
    for t, attended in zip(words, attended_vectors(words, regions, 9.0), strict=True):
        nodes.append(unit(layer(state, "local_similarity", (unit(attended) - t) ** 2)))
    scores = []
    if c.sgraf in ("sgr", "both"):
        reasoned = nodes
        for n in range(3):
            out = [layer(state, f"steps.{n}.key", x) for x in reasoned]
            edges = [softmax([layer(state, f"steps.{n}.query", p) @ o for o in out]) for p in reasoned]
            mixed = [sum(e * x for e, x in zip(row, reasoned, strict=True)) for row in edges]
            reasoned = [np.maximum(layer(state, f"steps.{n}.output", x), 0.0) for x in mixed]
        scores.append(sigmoid(layer(state, "reasoned_score", reasoned[0])[0]))
    if c.sgraf in ("saf", "both"):
        opened = [sigmoid(layer(state, "filter", x)[0]) for x in nodes]
        filtered = unit(sum(b / sum(opened) * x for b, x in zip(opened, nodes, strict=True)))
        scores.append(sigmoid(layer(state, "filtered_score", filtered)[0]))
    mean = np.mean(scores)
    return np.log(mean) - np.log(1 - mean)


def score(state, c, regions, words, given=(None, None)):
    """Logit of a pair, and the mean gate logit that gate supervision acts on (None without gates).

    `given` are gates of regions and of words to be applied in place of the pair's own.
    """
    if c.matcher == "scan":
        return scan(state, c, regions, words), None
    if c.matcher == "sgraf":
        return sgraf(state, c, regions, words), None
    gate_logit, in_score = None, 0.0
    cosine = unit(np.mean(regions, axis=0)) @ unit(np.mean(words, axis=0))
    encoded = regions
    if c.matcher == "camp" and c.feature_norm:
        regions, words = ([c.feature_norm * unit(x) for x in side] for side in (regions, words))
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
            v, _, region_logits = receive(
                state, c, "regions", regions, region_queries, word_keys, words, None, given[0]
            )
        if c.message_passing in ("both", "image_to_text"):
            seen = None
            if c.gate_evidence:
                seen = evidence(state, encoded, words, word_queries, region_keys)
                in_score = state["messages.evidence.weight"] * sum(seen)
            t, _, word_logits = receive(state, c, "words", words, word_queries, region_keys, regions, seen, given[1])
        logits = word_logits if word_logits is not None else region_logits
        gate_logit = None if logits is None else np.mean(logits)
    logit = in_score + match(state, c, pool(state, c, "region_pooling", v), pool(state, c, "word_pooling", t))
    if c.joint_score:
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

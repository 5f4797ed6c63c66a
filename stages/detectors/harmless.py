"""Changes in what computes regions that leave features equal, or change them as little as another number of threads."""

HARMLESS: dict[str, str] = {
    # torchvision, detectron2, timm: AVIF and HEIC are read too.
    "357e410e982326320e2680e2dee34bab0b7bdeaf1bc6a8e0547f94d1e2b0f960": "dbc62c945f367501152e1f60ea5ff0bde1867548d49b31b9dad0a9c8132f81d1",
    "ba8b40b2c7c448706a722193c379088a95b4bd72910591a4c6d00453a9283b9e": "ea5c996f1abbd3e8e87e97dc9026e2b75ccd8eb487c3e34eb0dce521fe35e95b",
    "13b8ec4da03959fa5f59c77070fcd1373d0bd1e9f3da915c0072d806020320cd": "103436e90ce6c2a2cbf1e0bc54f97013ecc6526be17e89a145b24da48317103e",
    # The same for detectron2 0.6 at the commit that README.md names.
    "06e3be757cb0157c1dc6a6bf8629a4cc99754e900929c22579ef5be12e80c4c8": "0a6885b7ed2b529daf9332f0ef8f691877559e786f2a9a11c7ed76a8ab08fb73",
    # precomputed: more records are refused whose numbers begin at 0 where the pictures' begin at 1, or the reverse.
    "0169fd8cd2b47ffdd5584b11b9b52acb6fb1b7da482fe10dd284fdd1ec04bf41": "cd08cf766574a4ef13690339779055b3977ba5aba00e9e86d68fc9a192b9a952",
    # timm: batch norms are folded. Features of up to 26 change by at most 6e-5; a second thread changes them by 2e-5.
    "103436e90ce6c2a2cbf1e0bc54f97013ecc6526be17e89a145b24da48317103e": "9ea9f2a6f36a6da88f2d89e89b6ca878b587ccac9092e72c63996ef11061e046",
    # torchvision, detectron2, precomputed, timm: f-strings are read by their parts, equal in all Python versions.
    "dbc62c945f367501152e1f60ea5ff0bde1867548d49b31b9dad0a9c8132f81d1": "51c21e33a62f66de063f2a9db4c9be5869724c2c58843ea25dc6a8df36681aca",
    "ea5c996f1abbd3e8e87e97dc9026e2b75ccd8eb487c3e34eb0dce521fe35e95b": "c29e94feb77c62cc15b4b68eb1310f0a1cc388567bb6affc65e8f3addfcf22f3",
    "cd08cf766574a4ef13690339779055b3977ba5aba00e9e86d68fc9a192b9a952": "d41c3cb0d4c14f63cf328ce01de1520c0c79c3d5c6c7f828fdf740a13a81f6a6",
    "9ea9f2a6f36a6da88f2d89e89b6ca878b587ccac9092e72c63996ef11061e046": "f5f87d3e68e25752fca03e622395d5e43b90e5bb8f74093c99290054fc25740b",
    # The same for f-strings and for JPEGs with endless scans, with detectron2 0.6 at the commit that README.md names.
    "0a6885b7ed2b529daf9332f0ef8f691877559e786f2a9a11c7ed76a8ab08fb73": "a3cee2eb5813789bb05fc198a3b9d95f4e104d9fca47d640d9a3544415425709",
    "a3cee2eb5813789bb05fc198a3b9d95f4e104d9fca47d640d9a3544415425709": "e5e84e60795f01c64ddcd53e9520225d993e1fcc9f3e6f4f0600348c7b4f60f4",
    # torchvision, detectron2, timm: JPEGs with endless scans and TIFFs with a vast tile are rejected.
    "51c21e33a62f66de063f2a9db4c9be5869724c2c58843ea25dc6a8df36681aca": "d302aa6fa979ad1c1bcf8637f1d84737a3dcb0809ec8fcdcff610cc0a8773cb6",
    "c29e94feb77c62cc15b4b68eb1310f0a1cc388567bb6affc65e8f3addfcf22f3": "b9c85e3027e0984abe3bb94fdcc1cc92ab586fb3103701de2e537e01a54c2cee",
    "f5f87d3e68e25752fca03e622395d5e43b90e5bb8f74093c99290054fc25740b": "e0f2a96c7ba41de2bdf413c3c9e1d76020474c2ab0b023ea94817275bb92f7dc",
    # torchvision, timm, precomputed: the code around every detector was moved to a module of its own.
    "b3723da49ea84cd58267a0ac4393e2adcac0060892729239df2ce6faba05459a": "5df25c006edd7009ac20b219de7608acad1c2a503904a3c2fa3772ec70b203aa",
    "3fddbf6f0ea1f62f96ac113842f6817c3b8e703854f53cf2ff479e4f8de71c73": "e06d3bf3e2608f7299323b79175d27debf6e14c80b4d48ba1d728c600e68f4c3",
    "e65689595122f932f882e4f20e0fb78aa054eb944f296de2874dc24fd7a288f8": "24b203ec8a0fd1872e8408e89ec7a11fe104330893dd5802a3e9024ffa8fac7c",
    # timm: whether a network has classes is found by trying; what it is given is rejected earlier if unusable.
    "e0f2a96c7ba41de2bdf413c3c9e1d76020474c2ab0b023ea94817275bb92f7dc": "e06d3bf3e2608f7299323b79175d27debf6e14c80b4d48ba1d728c600e68f4c3",
    # timm, torchvision: pictures are normalised in place, and not converted if they are RGB.
    "c966e8c0cf0e28fc11a6754875b4435db7b2434ba00064d2a6794fe66112cee3": "3fddbf6f0ea1f62f96ac113842f6817c3b8e703854f53cf2ff479e4f8de71c73",
    "d302aa6fa979ad1c1bcf8637f1d84737a3dcb0809ec8fcdcff610cc0a8773cb6": "b3723da49ea84cd58267a0ac4393e2adcac0060892729239df2ce6faba05459a",
    # torchvision, detectron2, timm: a message about a frame and one about memory say more; a transparent value of 2- or
    # 4-bit grey PNGs is heeded, and only features of such pictures change.
    "c5399732a0cba90459cabc91544b4682a41dcca284a8c3c6a1ab3bb00ab5c69d": "357e410e982326320e2680e2dee34bab0b7bdeaf1bc6a8e0547f94d1e2b0f960",
    "2286234104536019cbe094d3f07074e20483bfe673950e0b49aef7ab38760159": "ba8b40b2c7c448706a722193c379088a95b4bd72910591a4c6d00453a9283b9e",
    "1f3d83f9521add2a5a64d4dd29ad2f2de90726780294cf4e92f6363fdff9fe8b": "13b8ec4da03959fa5f59c77070fcd1373d0bd1e9f3da915c0072d806020320cd",
    "0e3bb7eb2d86398b4777bf8fcda881d3ec27380ceb98be73e033fb75d95e5631": "06e3be757cb0157c1dc6a6bf8629a4cc99754e900929c22579ef5be12e80c4c8",
}
"""Digest of the code and versions that compute now -> digest of earlier ones that computed the same features. Both are
`computed_by` in data/detector/detector.json; train_detector prints the line to add here."""

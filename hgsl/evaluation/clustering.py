"""Agreement of the labels with a k-means clustering of the vectors."""

import faiss
import numpy as np

from hgsl.evaluation.knn.vectors import Ints, Vectors


def scores(vectors: Vectors, labels: Ints, *, iterations: int = 20, starts: int = 3, seed: int = 0) -> dict[str, float]:
    """Returns ``nmi`` and ``ami`` of the labels with a k-means clustering into as many clusters as there are labels.

    The best of several starts is taken, since k-means may end in a poor local optimum.

    NMI is 2 I(labels; clusters) / (H(labels) + H(clusters)); AMI is the same mutual information corrected for chance.
    NMI grows with the number of clusters, so it compares only runs on the same images.

    Source: Vinh, Epps, Bailey, "Information Theoretic Measures for Clusterings Comparison", JMLR 2010.
    """
    # Imported here, since it takes a second and few evaluations need it.
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    rows = vectors.rows(slice(None))
    clusters = len(np.unique(labels))
    kmeans = faiss.Kmeans(
        rows.shape[1],
        clusters,
        niter=iterations,
        nredo=starts,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows),
    )
    kmeans.train(rows)
    _, nearest = kmeans.index.search(rows, 1)
    return {
        "nmi": float(normalized_mutual_info_score(labels, nearest[:, 0])),
        "ami": float(adjusted_mutual_info_score(labels, nearest[:, 0])),
    }

// Loads and stores of less than a vector. Included by the bodies that are compiled once for each instruction set,
// inside a namespace; no includes.

// `n` numbers, up to a whole vector.
template <typename Vector, typename T>
inline Vector load(const T* from, int n) {
    if (n == Vector::lanes) return Vector::load(from);
    T whole[Vector::lanes] = {};
    for (int i = 0; i < n; ++i) whole[i] = from[i];
    return Vector::load(whole);
}

template <typename Vector, typename T>
inline void store(Vector vector, T* to, int n) {
    if (n == Vector::lanes) return vector.store(to);
    T whole[Vector::lanes];
    vector.store(whole);
    for (int i = 0; i < n; ++i) to[i] = whole[i];
}

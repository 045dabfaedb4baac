COMPOSITES = ("scaled_dot_product_attention","linear","matmul","rms_norm","conv2d","layer_norm","softmax.int")
